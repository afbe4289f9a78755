//! The transcript log: what a session has said, in order, and how it survives. No actor lives here.
//!
//! `slug` names a room, `clean` is the gate for strings from outside, `entry` is one line of the wire contract, `transcript_log` is one epoch's log with the
//! ring that viewers read, `directory` finds the log of a slug, `outbox` makes entries durable before anybody sees
//! them, `checkpoint` lets a restarted process go on.

pub mod checkpoint;
pub mod clean;
pub mod directory;
pub mod entry;
pub mod event;
pub mod origin;
pub mod outbox;
pub mod reader;
pub mod session_record;
pub mod sink;
pub mod slug;
pub mod speaker_report;
pub mod transcript_log;

pub use directory::{Directory, Room};
pub use entry::{
    Entry, Epoch, Gap, GapReason, Kind, Latency, Speaker, Status, StatusChange, Transcript, Translation, Word,
};
pub use event::{NumberedVoice, TranscriptEvent, Translated, Utterance};
pub use origin::Origin;
pub use reader::{ReadError, SessionInfo, StorageState, StoredTail, TranscriptReader};
pub use session_record::{AudioAccount, SessionRecord, SessionState};
pub use sink::{AlreadyDurable, Durability, EntrySink};
pub use slug::{Slug, SlugError};
pub use speaker_report::{SpeakerSource, SpeakerUpdate};
pub use transcript_log::{Cursor, Item, Read, Stamp, TranscriptLog};
