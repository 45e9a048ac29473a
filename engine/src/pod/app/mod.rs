//! What containers do: one enum of small applications, woken by events.
//!
//! `container.rs` makes them and hands them events; they use the pod through [`Sockets`].
//! Invariant: an application never waits; it does what it can and is woken again. Allowed dependencies: `sockets`, `program`.
//! Read first: `echo.rs`, the smallest.

mod document;
mod echo;
mod fastcgi;
pub(super) mod http;
mod httpd;
mod nginx;
mod php_fpm;
mod session;
mod squid;
mod upstream;

use super::config::{ContainerConfig, Transport};
use super::image::Image;
use super::program::Program;
use super::socket::{Event, TcpId};
use super::sockets::Sockets;
use echo::Echo;
use httpd::Httpd;
use nginx::Nginx;
use php_fpm::PhpFpm;
use squid::Squid;

/// An application.
#[derive(Debug)]
pub(super) enum App {
    /// Does nothing, for ever.
    Pause,
    /// Sends everything back.
    Echo(Echo),
    /// A web server.
    Httpd(Httpd),
    /// A web server or proxy.
    Nginx(Nginx),
    /// A FastCGI server.
    PhpFpm(PhpFpm),
    /// A caching proxy.
    Squid(Box<Squid>),
    /// One program; the container ends with it.
    Command(Box<Program>),
}

impl App {
    /// Makes the application of a container.
    ///
    /// # Errors
    /// A text that says which argument makes no sense.
    pub(super) fn new(config: &ContainerConfig) -> Result<App, String> {
        Ok(match config.image {
            Image::Pause => App::Pause,
            Image::Echo => App::Echo(Echo::default()),
            Image::Httpd => App::Httpd(Httpd::default()),
            Image::Nginx => App::Nginx(Nginx::new(&config.args)?),
            Image::PhpFpm => App::PhpFpm(PhpFpm::default()),
            Image::Squid => App::Squid(Box::new(Squid::new(&config.args)?)),
            Image::Client if config.args.is_empty() => App::Pause,
            Image::Client => App::Command(Box::new(Program::new(&config.args))),
        })
    }

    /// Handles an event.
    pub(super) fn handle(&mut self, event: Event, sockets: &mut Sockets<'_, '_>) {
        match self {
            App::Pause => {}
            App::Echo(echo) => echo.handle(event, sockets),
            App::Httpd(httpd) => httpd.handle(event, sockets),
            App::Nginx(nginx) => nginx.handle(event, sockets),
            App::PhpFpm(php_fpm) => php_fpm.handle(event, sockets),
            App::Squid(squid) => squid.handle(event, sockets),
            App::Command(program) => program.handle(event, sockets),
        }
    }

    /// Returns how the application ended by itself, if it did.
    pub(super) fn exit_code(&self) -> Option<i32> {
        match self {
            App::Command(program) => program.exit_code(),
            App::Pause | App::Echo(_) | App::Httpd(_) | App::Nginx(_) | App::PhpFpm(_) | App::Squid(_) => {
                None
            }
        }
    }

    /// Takes what the application wrote.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        match self {
            App::Command(program) => program.take_output(),
            App::Squid(squid) => squid.take_log(),
            App::Pause | App::Echo(_) | App::Httpd(_) | App::Nginx(_) | App::PhpFpm(_) => Vec::new(),
        }
    }
}

/// Returns the ports a container listens on.
///
/// # Errors
/// A text that says which argument is no port.
pub(super) fn ports(config: &ContainerConfig) -> Result<Vec<(Transport, u16)>, String> {
    if !config.ports.is_empty() {
        return Ok(config.ports.clone());
    }
    let mut ports = Vec::new();
    if config.image == Image::Echo {
        for argument in config.args.iter().filter(|argument| *argument != "--port") {
            let port = argument.parse().map_err(|_| format!("{argument} is no port"))?;
            ports.extend([(Transport::Tcp, port), (Transport::Udp, port)]);
        }
    }
    Ok(if ports.is_empty() { config.image.ports().to_vec() } else { ports })
}

/// Returns the connection an event is about.
fn connection(event: Event) -> Option<TcpId> {
    match event {
        Event::Tcp(id) => Some(id),
        Event::Start | Event::Timer | Event::Input | Event::Udp(_) | Event::Echo => None,
    }
}
