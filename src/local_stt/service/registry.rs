//! Which sessions there are, live and finished.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use actix::Addr;
use parking_lot::Mutex;
use serde_json::Value;
use uuid::Uuid;

use super::results::Finished;
use super::session::Session;

/// Memory for the documents of finished sessions; the oldest go first.
const MAX_FINISHED_BYTES: usize = 32 * 1024 * 1024;
const MAX_FINISHED: usize = 1000;

/// The sessions of the service, living and finished.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    live: HashMap<String, Live>,
    /// Token -> id.
    tokens: HashMap<String, String>,
    finished: VecDeque<Arc<Finished>>,
    finished_bytes: usize,
}

struct Live {
    token: String,
    /// Unset between admission and start.
    session: Option<Addr<Session>>,
    /// It still recognises, and counts against the limit.
    working: bool,
    /// The answer to GET meanwhile.
    document: Value,
}

/// A session's place; given back when dropped, panics included.
pub struct Ticket {
    registry: Arc<Registry>,
    pub id: String,
    pub token: String,
}

impl Ticket {
    /// The session recognises nothing more; only its delivery may still be due.
    pub fn working_no_more(&self) {
        if let Some(live) = self.registry.inner.lock().live.get_mut(&self.id) {
            live.working = false;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.forget(&self.id);
    }
}

impl Registry {
    /// A place among at most `max` working sessions.
    pub fn admit(self: &Arc<Self>, max: usize) -> Option<Ticket> {
        let mut inner = self.inner.lock();
        if inner.live.values().filter(|l| l.working).count() >= max {
            return None;
        }
        let (id, token) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        let live = Live { token: token.clone(), session: None, working: true, document: Value::Null };
        inner.live.insert(id.clone(), live);
        inner.tokens.insert(token.clone(), id.clone());
        Some(Ticket { registry: self.clone(), id, token })
    }

    pub fn started(&self, id: &str, session: Addr<Session>, document: Value) {
        if let Some(live) = self.inner.lock().live.get_mut(id) {
            live.session = Some(session);
            live.document = document;
        }
    }

    pub fn forget(&self, id: &str) {
        let mut inner = self.inner.lock();
        if let Some(live) = inner.live.remove(id) {
            inner.tokens.remove(&live.token);
        }
    }

    pub fn finish(&self, finished: Finished) {
        let mut inner = self.inner.lock();
        inner.finished_bytes += finished.bytes;
        inner.finished.push_back(Arc::new(finished));
        while inner.finished.len() > MAX_FINISHED || inner.finished_bytes > MAX_FINISHED_BYTES {
            let Some(oldest) = inner.finished.pop_front() else { break };
            inner.finished_bytes -= oldest.bytes;
        }
    }

    pub fn by_token(&self, token: &str) -> Option<(String, Addr<Session>)> {
        let inner = self.inner.lock();
        let id = inner.tokens.get(token)?;
        Some((id.clone(), inner.live.get(id)?.session.clone()?))
    }

    pub fn by_id(&self, id: &str) -> Option<Addr<Session>> {
        self.inner.lock().live.get(id)?.session.clone()
    }

    pub fn sessions(&self) -> Vec<Addr<Session>> {
        self.inner.lock().live.values().filter_map(|l| l.session.clone()).collect()
    }

    pub fn working(&self) -> usize {
        self.inner.lock().live.values().filter(|l| l.working).count()
    }

    pub fn finished(&self, id: &str) -> Option<Arc<Finished>> {
        self.inner.lock().finished.iter().find(|f| f.id == id).cloned()
    }

    /// `None`: no such session. `Some(false)`: it is not finished.
    pub fn delete(&self, id: &str) -> Option<bool> {
        let mut inner = self.inner.lock();
        if let Some(at) = inner.finished.iter().position(|f| f.id == id) {
            if let Some(deleted) = inner.finished.remove(at) {
                inner.finished_bytes -= deleted.bytes;
            }
            return Some(true);
        }
        inner.live.contains_key(id).then_some(false)
    }

    /// Documents of all sessions, the newest first.
    pub fn documents(&self) -> Vec<Value> {
        let inner = self.inner.lock();
        let filed = |id: &str| inner.finished.iter().any(|f| f.id == id);
        let live = inner.live.iter().filter(|(id, live)| !live.document.is_null() && !filed(id));
        let mut documents: Vec<Value> = live.map(|(_, live)| live.document.clone()).collect();
        documents.extend(inner.finished.iter().map(|f| f.document.clone()));
        documents.sort_by(|a, b| b["created_at"].as_str().cmp(&a["created_at"].as_str()));
        documents
    }

    pub fn document(&self, id: &str) -> Option<Value> {
        if let Some(finished) = self.finished(id) {
            return Some(finished.document.clone());
        }
        self.inner.lock().live.get(id).map(|l| l.document.clone())
    }
}
