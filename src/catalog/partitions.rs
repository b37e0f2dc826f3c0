//! How large partitions are, and what tables are partitioned by: asked for anew with every look at the catalog, since VACUUM and
//! ANALYZE change sizes without changing the catalog.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::load::failed;
use super::model::Oid;
use super::queries;
use crate::error::Error;

/// One database's partitions at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Pages of each partition with rows of its own, as VACUUM or ANALYZE last counted them.
    pub pages: HashMap<Oid, u64>,
    /// What each partitioned table is partitioned by, as `PARTITION BY` has it: `RANGE (day)`.
    pub keys: HashMap<Oid, Box<str>>,
}

/// Reads them. `client` must be idle.
///
/// # Errors
/// The server does not answer.
pub async fn load(client: &Client) -> Result<Partitions, Error> {
    let mut partitions = Partitions::default();
    for row in client.query(queries::PARTITIONS, &[]).await.map_err(failed)? {
        let oid = row.try_get(0).map_err(failed)?;
        match row.try_get::<_, Option<&str>>(2).map_err(failed)? {
            Some(key) => drop(partitions.keys.insert(oid, key.into())),
            None => {
                let pages: i32 = row.try_get(1).map_err(failed)?;
                partitions.pages.insert(oid, u64::try_from(pages).unwrap_or_default());
            }
        }
    }
    Ok(partitions)
}
