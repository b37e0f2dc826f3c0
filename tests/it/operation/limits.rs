//! How many clients there may be, who gets in when the house is full, and who leaves while he waits.

use super::{PATIENCE, limit, shown, told, toml};
use crate::harness::wire::WireClient;
use crate::harness::{self, Pgherd, eventually, try_connect};

async fn refusal(pgherd: &Pgherd, user: &str, database: &str) -> (String, String, String) {
    told(&try_connect(&pgherd.conninfo(user, database)).await.map(|_| ()).expect_err("refused"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_house_lets_those_in_who_may_use_the_reserve_and_nobody_else() {
    let database = harness::fresh_database().await;
    let name = &database.name;
    let more = "[[user]]\nname = \"chief\"\nauth = \"trust\"\nmay_use_reserve = true\n[limits]\nreserved_clients = 2\n\
                [listen]\naddress = \"127.0.0.1:0\"\nmax_clients = 2\n";
    let pgherd = Pgherd::start(&toml(&database, "", &["guest"], more)).await;
    let guests = [pgherd.client_as("guest", name).await, pgherd.client_as("guest", name).await];
    let (code, detail, hint) = refusal(&pgherd, "guest", name).await;
    assert_eq!((code.as_str(), hint.as_str()), ("53300", "Raise listen.max_clients."));
    assert!(detail.contains("There are 2"), "{detail}");
    assert_eq!(refusal(&pgherd, "nobody", name).await.0, "53300", "whoever that is, nothing is proved");
    let console = pgherd.client_as("boss", "pgherd").await;
    let chief = pgherd.client_as("chief", name).await;
    chief.batch_execute("select 1").await.expect("served");
    assert_eq!(refusal(&pgherd, "chief", name).await.0, "53300", "the reserve has two places");
    drop(chief);
    eventually(PATIENCE, "the place is free again", async || {
        try_connect(&pgherd.conninfo("chief", name)).await.is_ok()
    })
    .await;
    assert_eq!(limit(&console, "listen.max_clients").await["max"], "2");
    drop(guests);
    eventually(PATIENCE, "there is room for anybody", async || {
        try_connect(&pgherd.conninfo("guest", name)).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_and_a_user_have_places_of_their_own() {
    let databases = harness::fresh_databases(2).await;
    let (one, other) = (&databases[0], &databases[1]);
    let more = format!(
        "[[database]]\nname = \"{}\"\nprimary = \"{}\"\nmax_clients = 1\n\
         [[user]]\nname = \"single\"\nauth = \"trust\"\nmax_clients = 1\n",
        other.name,
        other.conninfo()
    );
    let pgherd = Pgherd::start(&toml(one, "", &["guest"], &more)).await;
    let _only = pgherd.client_as("guest", &other.name).await;
    let (code, _, hint) = refusal(&pgherd, "guest", &other.name).await;
    assert_eq!((code.as_str(), hint.contains("the database's max_clients")), ("53300", true), "{hint}");
    let _chief = pgherd.client_as("boss", &other.name).await;
    let _single = pgherd.client_as("single", &one.name).await;
    let (code, _, hint) = refusal(&pgherd, "single", &one.name).await;
    assert_eq!((code.as_str(), hint.contains("the user's max_clients")), ("53300", true), "{hint}");
    let console = pgherd.client_as("boss", "pgherd").await;
    // Who was refused has its answer before it is off the list.
    eventually(PATIENCE, "the refused are gone", async || {
        let row = limit(&console, "user.max_clients").await;
        let of_user = (row["of"].as_str(), row["used"].as_str(), row["max"].as_str());
        let shown = shown(&console, "show databases").await;
        let row = shown.iter().find(|row| row["name"] == other.name).expect("the database");
        let of_database = (row["max_client_connections"].as_str(), row["current_client_connections"].as_str());
        (of_user, of_database) == (("single", "1", "1"), ("1", "2"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_it_waits_is_noticed_at_once() {
    let database = harness::fresh_database().await;
    let pgherd = Pgherd::start(&toml(&database, "max_connections = 1", &["guest"], "")).await;
    let console = pgherd.client_as("boss", "pgherd").await;
    let clients = async || shown(&console, "show clients").await;
    let leave_while_waiting = async || {
        let mut client = WireClient::login(pgherd.port, "guest", &database.name).await;
        client.say(|out| pgherd::wire::writer::query(out, b"create table never_made ()")).await;
        let waits = async || clients().await.iter().any(|row| row["state"] == "waiting");
        eventually(PATIENCE, "it waits", waits).await;
        drop(client);
        eventually(PATIENCE, "nobody waits", async || clients().await.iter().all(|row| row["state"] != "waiting"))
            .await;
    };
    // Before a paused database, then for a server connection that another holds.
    pgherd.client_as("guest", &database.name).await.batch_execute("select 1").await.expect("an answer");
    eventually(PATIENCE, "nobody is there", async || clients().await.is_empty()).await;
    console.batch_execute("pause").await.expect("paused");
    leave_while_waiting().await;
    console.batch_execute("resume").await.expect("resumed");
    let holder = pgherd.client_as("guest", &database.name).await;
    holder.batch_execute("begin; select 1").await.expect("begun");
    leave_while_waiting().await;
    holder.batch_execute("commit").await.expect("committed");
    let made = holder.query("select 1 from pg_class where relname = 'never_made'", &[]).await.expect("an answer");
    assert!(made.is_empty(), "nothing was done for those who had left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_before_a_goodbye_is_done_even_after_a_wait() {
    let database = harness::fresh_database().await;
    let pgherd = Pgherd::start(&toml(&database, "max_connections = 1", &["guest"], "")).await;
    let console = pgherd.client_as("boss", "pgherd").await;
    let mut client = WireClient::login(pgherd.port, "guest", &database.name).await;
    console.batch_execute("pause").await.expect("paused");
    client
        .say(|out| {
            pgherd::wire::writer::query(out, b"create table made ()");
            pgherd::wire::writer::terminate(out);
        })
        .await;
    drop(client);
    let waits = async || shown(&console, "show clients").await.iter().any(|row| row["state"] == "waiting");
    eventually(PATIENCE, "it waits", waits).await;
    console.batch_execute("resume").await.expect("resumed");
    let straight = database.client().await;
    let made = "select 1 from pg_class where relname = 'made'";
    eventually(PATIENCE, "it is made", async || !straight.query(made, &[]).await.expect("an answer").is_empty()).await;
}
