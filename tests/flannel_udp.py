"""A node that speaks flannel's udp format by itself: raw IPv4 in UDP, to and from a TUN interface.

flannel_udp.py ADDRESS SUBNET_ADDRESS/LENGTH NETWORK PEER
"""

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001

address, own, network, peer = sys.argv[1:]
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"flannel0", IFF_TUN_NO_PI))
tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tunnel.bind((address, 8285))
for command in (f"addr add {own} dev flannel0", "link set flannel0 mtu 1472 up", f"route add {network} dev flannel0"):
    subprocess.run(["ip", *command.split()], check=True)
print("ready", flush=True)
while True:
    ready, _, _ = select.select([tun, tunnel], [], [])
    if tun in ready:
        packet = os.read(tun, 65535)
        if packet[0] >> 4 == 4:
            tunnel.sendto(packet, (peer, 8285))
    if tunnel in ready:
        packet, sender = tunnel.recvfrom(65535)
        if sender == (peer, 8285):
            os.write(tun, packet)
