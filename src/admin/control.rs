//! What the console's commands do: PAUSE and its kin, on one database or on all.

use std::sync::Arc;

use super::World;
use super::command::Command;
use super::show::clients_of;
use super::value::{Column, Row, Type};
use crate::backend::gate::Passage;
use crate::error::{Error, ErrorKind};
use crate::session::context::Database;
use crate::session::purge;
use crate::wire::sqlstate::SqlState;

/// What PURGE answers: how many answers went from this process's memory.
pub(super) const PURGED: [Column; 1] = [("entries", Type::Numeric)];

/// Carries a command out; returns when what it asks for has come about, with the rows that tell of it.
///
/// # Errors
/// There is no such database or client, or it is not in the state that the command is for.
pub(super) async fn carry_out(world: &dyn World, command: &Command) -> Result<Vec<Row>, Error> {
    if let Command::Purge(name, what) = command {
        let entries = purge::purge(&named(world, name.as_deref())?, what).await?;
        return Ok(vec![vec![entries.into()]]);
    }
    steer(world, command).await.map(|()| Vec::new())
}

async fn steer(world: &dyn World, command: &Command) -> Result<(), Error> {
    match command {
        Command::Show(_) | Command::Set | Command::Purge(..) => Ok(()),
        Command::Pause(name) => pause(&named(world, name.as_deref())?, name.is_some()).await,
        Command::Resume(name) => resume(&named(world, name.as_deref())?, name.as_deref()),
        Command::Suspend => suspend(&named(world, None)?).await,
        Command::Kill(name) => {
            let databases = named(world, name.as_deref())?;
            kill(world, &databases, name.as_deref());
            are_closed(&databases).await;
            Ok(())
        }
        Command::KillClient(id) => {
            let all = world.clients().all();
            let Some(client) = all.iter().find(|client| client.id == *id) else {
                return Err(refused(format!("no client has the id {id}")).hint("SHOW CLIENTS lists them."));
            };
            client.kill();
            Ok(())
        }
        Command::Reconnect(name) => {
            let databases = named(world, name.as_deref())?;
            for database in &databases {
                database.gate.next_epoch();
                database.pools().iter().for_each(|(_, pool)| pool.close_outdated());
            }
            Ok(())
        }
        Command::WaitClose(name) => {
            are_closed(&named(world, name.as_deref())?).await;
            Ok(())
        }
        Command::Disable(name) | Command::Enable(name) => {
            let disabled = matches!(command, Command::Disable(_));
            named(world, Some(name))?.iter().for_each(|database| database.gate.set_disabled(disabled));
            Ok(())
        }
        Command::Reload => world.reload().await,
        Command::Shutdown(how) => {
            world.shut_down(*how);
            Ok(())
        }
    }
}

/// The database of that name, or all.
fn named(world: &dyn World, name: Option<&str>) -> Result<Vec<Arc<Database>>, Error> {
    let mut databases = world.databases();
    if let Some(name) = name {
        databases.retain(|database| database.config.name == name);
        if databases.is_empty() {
            let message = format!("no such database: {name}");
            return Err(Error::new(ErrorKind::Refused, SqlState::INVALID_CATALOG_NAME, message)
                .hint("SHOW DATABASES lists them; a name with capitals needs double quotes."));
        }
    }
    Ok(databases)
}

async fn pause(databases: &[Arc<Database>], is_one: bool) -> Result<(), Error> {
    if databases.iter().all(|database| database.gate.is_shut()) && !databases.is_empty() {
        let what = if is_one { "the database is" } else { "all databases are" };
        return Err(refused(format!("{what} paused or suspended already")));
    }
    for database in databases.iter().filter(|database| !database.gate.wants_none()) {
        database.gate.set(Passage::Paused);
        database.gate.next_epoch();
    }
    are_closed(databases).await;
    for database in databases {
        database.listener_is_closed().await;
    }
    Ok(())
}

/// Waits until no server connection is left from before, or until the gate is opened by another console.
async fn are_closed(databases: &[Arc<Database>]) {
    for database in databases {
        for (_, pool) in database.pools() {
            pool.outdated_are_closed().await;
        }
    }
}

async fn suspend(databases: &[Arc<Database>]) -> Result<(), Error> {
    if databases.iter().any(|database| database.gate.is_shut()) {
        return Err(refused("some databases are paused or suspended already".into()).hint("RESUME first."));
    }
    databases.iter().for_each(|database| {
        database.gate.set(Passage::Suspended);
    });
    for database in databases {
        for (_, pool) in database.pools() {
            pool.all_given_back().await;
        }
    }
    Ok(())
}

fn resume(databases: &[Arc<Database>], name: Option<&str>) -> Result<(), Error> {
    let mut any = false;
    for database in databases {
        any |= database.gate.set(Passage::Open) != Passage::Open;
    }
    match (any, name) {
        (true, _) => Ok(()),
        (false, Some(name)) => Err(refused(format!("database {name} is not paused"))),
        (false, None) => Err(refused("nothing is paused or suspended".into())),
    }
}

fn kill(world: &dyn World, databases: &[Arc<Database>], name: Option<&str>) {
    for database in databases {
        database.gate.set(Passage::Killed);
        database.gate.next_epoch();
    }
    clients_of(&world.clients(), name).iter().for_each(|client| client.kill());
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::Refused, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}
