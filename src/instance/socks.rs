//! SOCKS5, the server's side: which target a client asks for, and how it is answered.
//!
//! `entrances` speaks it with each client. Invariants: nothing beyond the request is read, so that what follows is the connection's; a
//! client without CONNECT or without "no authentication" is told so. Depends on tokio. Read first: RFC 1928.

use std::io;
use std::net::Ipv4Addr;

use flatnet_engine::pod::SocketError;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::entrance::Target;

/// The protocol's version.
const VERSION: u8 = 5;
/// The method of those who need not say who they are.
const NO_AUTHENTICATION: u8 = 0;
/// The answer to who offers no method that there is.
const NO_METHOD: u8 = 0xff;
/// The command that makes a connection.
const CONNECT: u8 = 1;
/// The address types.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// What a client is told (RFC 1928, 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reply {
    /// The connection is there.
    Succeeded = 0,
    /// Something else.
    Failure = 1,
    /// There is no way to the network.
    NetworkUnreachable = 3,
    /// The host does not answer, or nobody has the name.
    HostUnreachable = 4,
    /// Nobody listens.
    Refused = 5,
    /// It is no CONNECT.
    CommandNotSupported = 7,
    /// It is an IPv6 address.
    AddressNotSupported = 8,
}

impl Reply {
    /// Returns the message.
    pub(super) fn message(self) -> [u8; 10] {
        // The address that the connection has on the other side is of no use to anybody.
        [VERSION, self as u8, 0, IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// Returns what a client is told of the connection that it asked for.
pub(super) fn answer(result: Result<(), SocketError>) -> Vec<u8> {
    let reply = match result {
        Ok(()) => Reply::Succeeded,
        Err(SocketError::ConnectionRefused | SocketError::ConnectionReset) => Reply::Refused,
        Err(SocketError::NetworkUnreachable) => Reply::NetworkUnreachable,
        Err(SocketError::HostUnreachable | SocketError::TimedOut) => Reply::HostUnreachable,
        Err(SocketError::NoPortLeft) => Reply::Failure,
    };
    reply.message().to_vec()
}

/// Hears what a client wants to be connected to; `None` if it was told that it cannot be.
///
/// # Errors
/// The client left, or does not speak SOCKS5.
pub(super) async fn negotiate(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<Option<Target>> {
    let [version, count] = read(client).await?;
    check_version(version)?;
    let mut methods = [0; 255];
    let methods = &mut methods[..usize::from(count)];
    client.read_exact(methods).await?;
    let is_open = methods.contains(&NO_AUTHENTICATION);
    client.write_all(&[VERSION, if is_open { NO_AUTHENTICATION } else { NO_METHOD }]).await?;
    if !is_open {
        return Ok(None);
    }
    let [version, command, _, kind] = read(client).await?;
    check_version(version)?;
    let name = match kind {
        IPV4 => Some(Ipv4Addr::from(read::<4>(client).await?).to_string()),
        NAME => {
            let [length] = read(client).await?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name).await?;
            Some(String::from_utf8_lossy(&name).into_owned())
        }
        IPV6 => {
            read::<16>(client).await?;
            None
        }
        _ => None,
    };
    let refused = match (command, name) {
        (CONNECT, Some(name)) => {
            let port = u16::from_be_bytes(read(client).await?);
            return Ok(Some(Target { name, port }));
        }
        (CONNECT, None) => Reply::AddressNotSupported,
        (_, _) => Reply::CommandNotSupported,
    };
    client.write_all(&refused.message()).await?;
    Ok(None)
}

async fn read<const N: usize>(client: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn check_version(version: u8) -> io::Result<()> {
    if version == VERSION { Ok(()) } else { Err(io::Error::other("no SOCKS5")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client is told, what it asked for, and what is left of its words.
    fn negotiated(words: &[u8]) -> (Vec<u8>, io::Result<Option<Target>>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut server) = tokio::io::duplex(1024);
            client.write_all(words).await.unwrap();
            client.shutdown().await.unwrap();
            let result = negotiate(&mut server).await;
            let mut left = Vec::new();
            server.read_to_end(&mut left).await.unwrap();
            drop(server);
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            (told, result, left)
        })
    }

    fn target(name: &str, port: u16) -> Target {
        Target { name: name.to_owned(), port }
    }

    /// RFC 1928, 3 and 4.
    #[test]
    fn a_name_or_an_address_is_asked_for_and_nothing_beyond_is_read() {
        let words = b"\x05\x02\x02\x00\x05\x01\x00\x03\x03web\x00\x50GET /";
        let (told, result, left) = negotiated(words);
        assert_eq!((told.as_slice(), left.as_slice()), (&b"\x05\x00"[..], &b"GET /"[..]));
        assert_eq!(result.unwrap(), Some(target("web", 80)));
        let (_, result, _) = negotiated(b"\x05\x01\x00\x05\x01\x00\x01\x0a\x01\x0f\x03\x1f\x90");
        assert_eq!(result.unwrap(), Some(target("10.1.15.3", 8080)));
    }

    #[test]
    fn what_there_is_not_is_told_by_its_code() {
        let (told, result, _) = negotiated(b"\x05\x01\x02");
        assert_eq!((told.as_slice(), result.unwrap()), (&b"\x05\xff"[..], None));
        for (request, code) in [
            // BIND, UDP ASSOCIATE, an IPv6 address, an address of no type.
            (&b"\x05\x02\x00\x01\x0a\x01\x0f\x03\x00\x50"[..], 7),
            (&b"\x05\x03\x00\x03\x03web\x00\x50"[..], 7),
            (&b"\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x50"[..], 8),
            (&b"\x05\x01\x00\x02\x0a\x01\x0f\x03\x00\x50"[..], 8),
        ] {
            let (told, result, _) = negotiated(&[b"\x05\x01\x00", request].concat());
            assert_eq!(result.unwrap(), None);
            assert_eq!(told[2..], [5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{request:?}");
        }
    }

    #[test]
    fn other_protocols_and_halves_of_requests_are_no_clients() {
        for words in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x04\x01\x00\x50\x0a\x01\x0f\x03\x00", b"\x05\x02\x00", b""]
        {
            let (told, result, _) = negotiated(words);
            assert!(result.is_err() && told.is_empty(), "{words:?}");
        }
        let (told, result, _) = negotiated(b"\x05\x01\x00\x05\x01\x00\x03\x09web");
        assert!(result.is_err() && told == b"\x05\x00");
    }

    #[test]
    fn what_became_of_a_connection_is_told_by_its_code() {
        let code = |result| answer(result)[1];
        assert_eq!(code(Ok(())), 0);
        assert_eq!(code(Err(SocketError::ConnectionRefused)), 5);
        assert_eq!(code(Err(SocketError::NetworkUnreachable)), 3);
        assert_eq!(code(Err(SocketError::TimedOut)), 4);
        assert_eq!(code(Err(SocketError::NoPortLeft)), 1);
    }
}
