"""Sends back what comes by TCP and UDP, or asks somebody who does.

echo.py serve ADDRESS PORT
echo.py ask ADDRESS PORT CONNECTIONS BYTES

`ask` holds that many connections at once, sends so many bytes by each, ends its direction, and prints how many came back whole.
"""

import os
import socket
import sys
import threading


def pump(connection):
    with connection:
        while part := connection.recv(1 << 16):
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)


def serve(address, port):
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, port))

    def answer():
        while True:
            text, client = datagrams.recvfrom(65535)
            datagrams.sendto(text, client)

    threading.Thread(target=answer, daemon=True).start()
    server = socket.create_server((address, port), backlog=512)
    print("ready", flush=True)
    while True:
        threading.Thread(target=pump, args=(server.accept()[0],), daemon=True).start()


def ask(address, port, count, length):
    connections = [socket.create_connection((address, port), timeout=60) for _ in range(count)]
    whole = []

    def exchange(connection):
        sent = os.urandom(length)

        def write():
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=write)
        writer.start()
        heard = bytearray()
        while part := connection.recv(1 << 16):
            heard += part
        writer.join()
        if heard == sent:
            whole.append(True)

    threads = [threading.Thread(target=exchange, args=(it,)) for it in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(whole))


command, address, port, *rest = sys.argv[1:]
if command == "serve":
    serve(address, int(port))
else:
    ask(address, int(port), *map(int, rest))
