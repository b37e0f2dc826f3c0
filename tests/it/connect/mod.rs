//! Between a socket and an authenticated session: real clients log in through the handshake, and it logs in on real servers.

mod clients;
mod front;
mod hostile;
mod lies;
mod records;
mod servers;
