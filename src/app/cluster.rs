//! What a node of a cluster knows of itself and of its rooms when it starts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::StartError;
use crate::actors::room_keeper::LostRooms;
use crate::actors::services::Services;
use crate::bus::log_server::{Link, SharedServer};
use crate::bus::ownership::{Identity, Ownership, has_twin};
use crate::config::Config;
use crate::db::Storage;
use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::outbox::OutboxError;

/// Longest wait for the process before this one to be gone from the log server.
const TWIN_PATIENCE: Duration = Duration::from_secs(5);
const TWIN_PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for the sessions of other nodes.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows looked at in one go.
const PAGE: usize = 1000;

/// The rooms that this node may write.
pub(super) struct Rooms {
    pub ownership: Arc<Ownership>,
    pub lost: LostRooms,
}

/// None without a log server.
pub(super) async fn rooms(server: Option<&SharedServer>, config: &Config) -> Result<Option<Rooms>, StartError> {
    let Some(server) = server else { return Ok(None) };
    let dir = &config.server.data_dir;
    let home =
        home(dir).map_err(|e| StartError::Other(format!("cannot keep this node's name in {}: {e}", dir.display())))?;
    is_alone(server, &home, dir).await?;
    let me = Identity::new(&config.split.node_id, &home);
    let (ownership, lost) = Ownership::new(server.clone(), me);
    Ok(Some(Rooms { ownership, lost: Arc::new(Mutex::new(lost)) }))
}

/// A folder that was copied to another machine, or is baked into an image, gives two nodes one identity. The node before
/// this one on the same folder may take a moment to be gone.
async fn is_alone(server: &SharedServer, home: &str, dir: &Path) -> Result<(), StartError> {
    let deadline = Instant::now() + TWIN_PATIENCE;
    while has_twin(server, home).await {
        if Instant::now() >= deadline {
            return Err(StartError::Bus(format!(
                "another node is running on a copy of {}; give each node a DATA_DIR of its own: delete the file `home` in a copy, and everything else that was copied with it",
                dir.display()
            )));
        }
        tokio::time::sleep(TWIN_PAUSE).await;
    }
    Ok(())
}

/// Viewers wait at the door until they are shown the sessions of other nodes: to those who came before, a session that goes
/// on would have ended. Nobody waits for a log server that is away.
pub(super) async fn rooms_are_here(services: &Services) {
    let (mut link, mut caught_up) = match &services.log_server {
        Some(server) if services.config.server.mode.serves() => (server.link(), services.caught_up.subscribe()),
        _ => return,
    };
    let is_away = link.wait_for(|link| matches!(link, Link::Away(_)));
    tokio::select! {
        _ = caught_up.wait_for(|caught_up| *caught_up) => {}
        _ = is_away => {}
        () = tokio::time::sleep(CATCH_UP_TIMEOUT) => {
            tracing::warn!("sessions of other nodes are not all here yet; serving those that are");
        }
    }
}

/// Sessions of which this node has the checkpoint go on; of other epochs in the outbox it only has leftovers.
pub(super) async fn note_left(
    rooms: &Rooms,
    storage: &Storage,
    targets: &[String],
    left: &[Checkpoint],
) -> Result<(), OutboxError> {
    for checkpoint in left {
        rooms.ownership.session_begins(&checkpoint.slug, checkpoint.epoch);
    }
    for target in targets {
        let queue = storage.outbox.consumer(target)?;
        loop {
            let rows = queue.read(PAGE).await?;
            if rows.is_empty() {
                break;
            }
            let epochs = rows.iter().filter_map(|row| Some(row.record.as_ref().ok()?.prefix().epoch));
            for epoch in epochs.filter(|epoch| left.iter().all(|checkpoint| checkpoint.epoch != *epoch)) {
                rooms.ownership.has_leftovers(epoch);
            }
        }
    }
    Ok(())
}

/// The name of an outbox, which is made once.
fn home(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join("home");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => Ok(name.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            let name = Uuid::now_v7().simple().to_string();
            std::fs::create_dir_all(data_dir)?;
            let temporary = path.with_extension("tmp");
            std::fs::write(&temporary, &name)?;
            std::fs::rename(&temporary, &path)?;
            Ok(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_outbox_stays() {
        let dir = tempfile::tempdir().unwrap();
        let first = home(dir.path()).unwrap();
        assert_eq!(home(dir.path()).unwrap(), first);
        std::fs::write(dir.path().join("home"), "").unwrap();
        assert_ne!(home(dir.path()).unwrap(), first);
    }
}
