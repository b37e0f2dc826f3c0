//! `[listen]`: where clients connect, and TLS towards them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::files;
use crate::config::model::{Listen, ListenTls, ListenTlsMode};
use crate::config::raw::Table;

/// Clients at most that a file may ask for: more than a machine has ports towards one address.
const MAX_CLIENTS: u64 = 1_000_000;
/// Bytes of the path of a Unix socket (`sockaddr_un.sun_path` less the terminating zero).
const UNIX_PATH_BYTES: usize = 107;

pub(super) fn read(table: &Table<'_>) -> Listen {
    // The fallback stands only beside a fault, and port 0 cannot collide.
    let address = socket_address(table, "address").unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    let http = socket_address(table, "http");
    if http.is_some_and(|http| http.port() != 0 && collide(address, http)) {
        table.fault("http", "this is the address that PostgreSQL clients connect to", "give it another port");
    }
    Listen {
        address,
        unix_socket_dir: unix_socket_dir(table),
        http,
        tls: tls(&table.table("tls")),
        max_clients: table.count("max_clients", 1..MAX_CLIENTS + 1).unwrap_or(1) as usize,
        login_timeout: table.duration("login_timeout"),
        shutdown_timeout: table.duration("shutdown_timeout"),
        drain_delay: table.duration_or_off("drain_delay"),
        handover: handover(table),
    }
}

/// `host:port`; `*` and an empty host mean every address.
fn socket_address(table: &Table<'_>, key: &str) -> Option<SocketAddr> {
    let typed = table.text_or_default(key)?;
    let text = match typed.strip_prefix('*') {
        Some(rest) => format!("0.0.0.0{rest}"),
        None if typed.starts_with(':') => format!("0.0.0.0{typed}"),
        None => typed.replacen("localhost:", "127.0.0.1:", 1),
    };
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let help = "write an IP address and a port, as \"0.0.0.0:6432\" or \"[::]:6432\"";
            table.fault(key, "this is not an address to listen on", help);
            None
        }
    }
}

/// Whether two listeners cannot both be had: the same port, and the same address or one that covers it.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// The file itself is made when pgherd starts.
fn handover(table: &Table<'_>) -> Option<PathBuf> {
    let path = table.path_of("handover")?;
    if !path.parent().is_some_and(Path::is_dir) {
        table.fault("handover", "the folder of this file does not exist", "create it, or remove the key");
    } else if path.is_dir() {
        table.fault("handover", "this is a folder", "name a file in it, as \"/run/pgherd/handover\"");
    } else if path.as_os_str().len() + ".4194304".len() > UNIX_PATH_BYTES {
        table.fault("handover", "the path is too long for a Unix socket", "choose a folder with a shorter path");
    }
    Some(path)
}

fn unix_socket_dir(table: &Table<'_>) -> Option<PathBuf> {
    let dir = table.path_of("unix_socket_dir")?;
    if !dir.is_dir() {
        table.fault("unix_socket_dir", "this folder does not exist", "create it, or remove the key");
    } else if dir.as_os_str().len() + "/.s.PGSQL.65535".len() > UNIX_PATH_BYTES {
        table.fault("unix_socket_dir", "the path is too long for a Unix socket", "choose a folder with a shorter path");
    }
    Some(dir)
}

fn tls(table: &Table<'_>) -> ListenTls {
    use ListenTlsMode::{Off, Prefer, Require, VerifyClient};
    let mode = [Off, Prefer, Require, VerifyClient][table.choice("mode").unwrap_or(0)];
    let tls = ListenTls {
        mode,
        cert: table.path_of("cert"),
        key: table.path_of("key"),
        client_ca: table.path_of("client_ca"),
    };
    if mode != Off {
        for (key, path) in [("cert", &tls.cert), ("key", &tls.key)] {
            if path.is_none() && !table.has(key) {
                table.fault(key, "TLS needs a certificate and its key", "name a PEM file, or set mode = \"off\"");
            }
        }
        if mode == VerifyClient && tls.client_ca.is_none() && !table.has("client_ca") {
            let help = "name the PEM file of the authorities that sign client certificates";
            table.fault("client_ca", "mode = \"verify-client\" needs it", help);
        }
    } else if let Some(key) = ["cert", "key", "client_ca"].into_iter().find(|key| table.has(key)) {
        table.warn(key, "TLS is off, so this is not used", "set mode = \"prefer\" or \"require\", or remove it");
    }
    check_pem(table, "cert", tls.cert.as_deref(), has_certificate);
    check_pem(table, "client_ca", tls.client_ca.as_deref(), has_certificate);
    check_pem(table, "key", tls.key.as_deref(), |pem| PrivateKeyDer::from_pem_slice(pem).is_ok());
    if let Some(key) = &tls.key {
        files::warn_if_world_readable(table, "key", key);
    }
    tls
}

fn has_certificate(pem: &[u8]) -> bool {
    let mut certificates = CertificateDer::pem_slice_iter(pem).peekable();
    certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
}

fn check_pem(table: &Table<'_>, key: &str, path: Option<&Path>, is_good: impl Fn(&[u8]) -> bool) {
    let Some(path) = path else { return };
    match files::read(path) {
        Ok(pem) if is_good(&pem) => {}
        Ok(_) => {
            let what = if key == "key" { "an unencrypted private key" } else { "a certificate" };
            table.fault(key, format!("{} does not hold {what} in PEM form", path.display()), "check the file");
        }
        Err(problem) => table.fault(key, problem, "check the path; it is relative to the folder of this file"),
    }
}
