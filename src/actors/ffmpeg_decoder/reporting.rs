//! Findings of the decoding state, told to the ledger, to viewers, to the encoder and to the log.

use crate::actors::rtmp_connection::Advise;
use crate::actors::session_core::SessionCore;
use crate::audio::state::Lost;
use crate::audio::{AudioTag, BYTES_PER_SAMPLE};
use crate::transcript::{GapReason, Status};

/// Hands a tag of the edge over to the state.
pub(super) fn accept(core: &SessionCore, tag: &AudioTag) {
    let arrived_ms = tag.arrived.saturating_duration_since(core.started).as_millis() as u64;
    if let Err(error) = core.decode().accept(tag, arrived_ms) {
        core.metrics.decode_errors_total.inc();
        tracing::debug!(session = %core.slug, %error, "audio tag refused");
    }
    if core.decode().take_assumed() {
        tracing::info!(session = %core.slug, "audio without a configuration: that of the session is assumed");
    }
    note_returns(core);
    announce_orphans(core);
    tell_trouble(core);
}

/// Frames that gave no sound: counted at once, told in holes.
pub(super) fn report_failed(core: &SessionCore) {
    let (frames, lost_ms) = core.decode().take_failed();
    if frames > 0 {
        core.metrics.decode_errors_total.inc_by(frames);
        tracing::debug!(session = %core.slug, frames, lost_ms, "frames gave no sound");
        let mut ledger = core.ledger();
        ledger.lose_undecoded(lost_ms);
        ledger.report(&core.metrics);
    }
    loop {
        let Some(Lost { start_ms, end_ms, tags }) = core.decode().pop_hole() else { break };
        tracing::warn!(session = %core.slug, frames = tags, start_ms, end_ms, "audio could not be decoded");
        core.announce_gap(start_ms, end_ms, GapReason::DecodeError);
    }
    tell_trouble(core);
}

/// Says to viewers and to the encoder that nothing can be decoded, and to viewers when it can again.
fn tell_trouble(core: &SessionCore) {
    let Some(trouble) = core.decode().trouble_change() else { return };
    match trouble {
        Some(trouble) => {
            tracing::warn!(session = %core.slug, reason = trouble.reason(), "no audio can be decoded");
            core.announce_status(Status::Degraded, trouble.reason());
            if let Some(publisher) = core.presence().publisher() {
                publisher.addr.do_send(Advise { text: trouble.advice() });
            }
        }
        None if core.log.status() == Status::Degraded => {
            // The recogniser may have troubles of its own.
            let status = core.ledger().last_status().filter(|status| status.0 != Status::Live);
            let (status, reason) = status.unwrap_or((Status::Live, "audio_decodes"));
            core.announce_status(status, reason);
        }
        None => {}
    }
}

/// Tags that were held have waited long enough for a backlog.
pub(super) fn settle(core: &SessionCore) {
    core.decode().settle();
    note_returns(core);
}

/// Tells what the state has found out of publishers that came back.
pub(super) fn note_returns(core: &SessionCore) {
    loop {
        let Some(returned) = core.decode().pop_return() else { break };
        core.publisher_returned(returned);
    }
    let skipped = core.decode().take_skipped();
    if skipped > 0 {
        let mut ledger = core.ledger();
        ledger.skip(skipped * BYTES_PER_SAMPLE as u64);
        ledger.report(&core.metrics);
        tracing::debug!(session = %core.slug, skipped_samples = skipped, "audio that was sent before came again");
    }
}

/// Frames that nobody can decode, since their configuration has not come.
pub(super) fn announce_orphans(core: &SessionCore) {
    loop {
        let Some(lost) = core.decode().pop_loss() else { return };
        tracing::warn!(session = %core.slug, tags = lost.tags, "audio without its configuration cannot be decoded");
        core.metrics.decode_errors_total.inc();
        core.announce_undecoded(lost);
    }
}

/// The session ends: what no decoder has taken by now is given up, with what its publisher may have sent after it up to
/// `until_ms`. A decoder that still runs finds nothing more to do.
pub fn give_up_waiting(core: &SessionCore, until_ms: u64) {
    while let Some(tag) = core.tags.pop() {
        accept(core, &tag);
    }
    core.decode().end_orphans();
    announce_orphans(core);
    let lost = core.decode().give_up();
    core.decode().end_holes();
    report_failed(core);
    note_returns(core);
    let Some(mut lost) = lost else { return };
    loop {
        let Some(chunk) = core.decode().front_chunk() else { break };
        core.push_pcm(chunk);
        core.decode().pop_chunk();
    }
    lost.end_ms = lost.end_ms.max(until_ms);
    core.metrics.decode_errors_total.inc();
    tracing::error!(session = %core.slug, tags = lost.tags, "audio given up at the session's end: no decoder took it");
    core.announce_undecoded(lost);
}
