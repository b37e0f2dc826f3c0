//! The records that TLS cuts what a client gets into.

use std::sync::{Arc, Mutex};

use pgherd::commands::demo::servers::Ground;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Pgherd, certificates, fresh_database, ground};

/// What encryption adds to a record at most (TLS 1.2 with AES-GCM: a nonce of 8 and a tag of 16 bytes; 1.3: 17 bytes).
const ADDED: usize = 24;

/// Hands on what it reads, and notes the length of each TLS record; the first byte is the answer to SSLRequest.
async fn listen_in(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, lengths: Arc<Mutex<Vec<usize>>>) {
    let Ok(agreed) = from.read_u8().await else { return };
    assert_eq!(agreed, b'S');
    to.write_u8(agreed).await.expect("written");
    let mut header = [0; 5];
    while from.read_exact(&mut header).await.is_ok() {
        let mut record = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        from.read_exact(&mut record).await.expect("a record");
        lengths.lock().expect("lengths").push(record.len());
        // The last, by which TLS says goodbye, is for one who may be gone.
        if to.write_all(&header).await.is_err() || to.write_all(&record).await.is_err() {
            return;
        }
    }
}

/// libpq's `PQconsumeInput` makes room for 8 kB and reads once: what is left of a longer record lies in OpenSSL's buffer, and
/// whoever waits for the socket then (psycopg's async connections, node's libpq, `pg_basebackup`) waits for ever.
#[tokio::test]
async fn no_record_is_longer_than_postgresqls() {
    let database = fresh_database().await;
    let (_, cert, key) = certificates().paths();
    let pgherd = Pgherd::start(&format!(
        "[[database]]\nname = \"{}\"\nprimary = \"{}\"\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
         [listen]\naddress = \"127.0.0.1:0\"\ntls = {{ mode = \"require\", cert = \"{}\", key = \"{}\" }}\n",
        database.name,
        database.address(),
        cert.display(),
        key.display()
    ))
    .await;
    let ear = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = ear.local_addr().expect("bound").port();
    for version in ["TLSv1.3", "TLSv1.2"] {
        let mut psql = ground().command(ground().binaries().postgres_program("psql"));
        let conninfo = format!(
            "host=127.0.0.1 port={port} user=postgres dbname={} sslmode=require ssl_max_protocol_version={version}",
            database.name
        );
        psql.args(["-X", "-A", "-t", "-c", "select repeat('x', 2000) from generate_series(1, 500)", &conninfo]);
        let client = tokio::task::spawn_blocking(move || Ground::run(&mut psql));
        let (mut from_client, mut to_client) = ear.accept().await.expect("psql").0.into_split();
        let (from_pgherd, mut to_pgherd) =
            TcpStream::connect(("127.0.0.1", pgherd.port)).await.expect("pgherd").into_split();
        let lengths = Arc::new(Mutex::new(Vec::new()));
        let back = tokio::spawn({
            let lengths = Arc::clone(&lengths);
            async move { listen_in(from_pgherd, &mut to_client, lengths).await }
        });
        let _ = tokio::io::copy(&mut from_client, &mut to_pgherd).await;
        drop(to_pgherd);
        back.await.expect("what pgherd says");
        client.await.expect("joined").unwrap_or_else(|error| panic!("{error}"));
        let lengths = lengths.lock().expect("lengths");
        assert!(lengths.iter().sum::<usize>() > 1_000_000, "{version}: all of it came this way");
        let longest = lengths.iter().max().expect("records");
        assert!((8192..=8192 + ADDED).contains(longest), "{version}: {longest} bytes");
    }
}
