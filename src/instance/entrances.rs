//! The ports of this host that lead into the network: who comes in there, and where to.
//!
//! The server runs [`run`] for each; the connection itself is handed to the worker of the pod that stands for this host, which relays it.
//! Invariants: one who asks by SOCKS has [`PATIENCE`] to say what for, and at most [`ASKING`] do at once; who cannot be let in is told so,
//! or reset.
//!
//! May depend on tokio, [`crate::entrance`]. Read first: `engine/src/pod/relay/mod.rs`.

use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use flatnet_engine::pod::RelayAnswer;
use tokio::sync::Semaphore;

use super::socks::{self, Reply};
use super::{Desk, Instance};
use crate::entrance::{CLIENT, Entrance, EntranceError, NAMESPACE, Target};
use crate::views::EntranceStatus;

/// How long a client of SOCKS may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients of SOCKS that have not said it yet.
const ASKING: usize = 256;
/// How long nobody is accepted when the system gives no more files.
const REST: Duration = Duration::from_millis(100);

/// Lets clients in at a port, as long as the server runs.
pub(super) async fn run(entrance: Entrance, desk: Desk) {
    let Ok(listener) = tokio::net::TcpListener::from_std(entrance.listener) else { return };
    let asking = Arc::new(Semaphore::new(ASKING));
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(_) => {
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        match &entrance.target {
            Some(target) => let_in(client, target.clone(), &desk).await,
            None => {
                let Ok(place) = Arc::clone(&asking).acquire_owned().await else { return };
                let desk = desk.clone();
                tokio::spawn(async move {
                    // Who does not say it in time leaves.
                    let _ = tokio::time::timeout(PATIENCE, ask(client, &desk)).await;
                    drop(place);
                });
            }
        }
    }
}

/// Lets one in who came to a published port.
async fn let_in(client: tokio::net::TcpStream, target: Target, desk: &Desk) {
    let Ok(client) = client.into_std() else { return };
    // Without a word: who is not let in is reset.
    let answer: RelayAnswer = |_| Vec::new();
    let relay = move |instance: &mut Instance| instance.relay(client, &target, answer);
    // When the network ends, so does the connection.
    if let Ok(Err(client)) = desk.ask(relay).await {
        // As the worker would.
        let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
    }
}

/// Hears what a client of SOCKS wants, and lets it in.
async fn ask(mut client: tokio::net::TcpStream, desk: &Desk) {
    let Ok(Some(target)) = socks::negotiate(&mut client).await else { return };
    let Ok(client) = client.into_std() else { return };
    let relay = move |instance: &mut Instance| instance.relay(client, &target, socks::answer);
    if let Ok(Err(client)) = desk.ask(relay).await {
        // A few bytes find room in a socket that has sent two.
        let _ = std::io::Write::write_all(&mut &client, &Reply::HostUnreachable.message());
    }
}

impl Instance {
    /// Lets the pod that stands for this host take in what comes to these ports.
    ///
    /// # Errors
    /// [`EntranceError::Name`] for a target that nobody has; the worker does not answer.
    pub fn open_entrances(&mut self, entrances: &[Entrance]) -> miette::Result<()> {
        if entrances.is_empty() {
            return Ok(());
        }
        self.drive.open_relays(&format!("{NAMESPACE}/{CLIENT}"), false)?;
        for Entrance { flag, address, target, .. } in entrances {
            if let Some(Target { name, .. }) = target
                && self.address_of(name).is_none()
            {
                let known = self.known_names().join(", ");
                return Err(EntranceError::Name { flag: flag.clone(), name: name.clone(), known }.into());
            }
            let leads_to = target.as_ref().map(|Target { name, port }| format!("{name}:{port}"));
            self.entrances.push(EntranceStatus { address: *address, leads_to });
        }
        Ok(())
    }

    /// Relays a connection of this host's to its target.
    ///
    /// # Errors
    /// The connection, when nobody has the target's name or the pod that stands for this host is gone.
    fn relay(&mut self, client: TcpStream, target: &Target, answer: RelayAnswer) -> Result<(), TcpStream> {
        let publisher = &self.drive.network.publisher;
        let place = publisher.place(&format!("{NAMESPACE}/{CLIENT}"));
        let (Some(address), Some(place)) = (self.address_of(&target.name), place) else { return Err(client) };
        let (port, to) = (place.port, SocketAddrV4::new(address, target.port));
        let Some(post) = publisher.control.posts.get(usize::from(place.worker)) else { return Err(client) };
        // A worker that takes nothing more lets the connection go.
        let _ = post.visit(move |worker| worker.with_pod(port, |pod, _| pod.relay(client, to, answer)));
        Ok(())
    }
}
