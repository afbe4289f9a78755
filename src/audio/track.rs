//! The one track of a publisher that is heard, out of all that it sends.
//!
//! A publish that is healthy goes on with its first track whatever else comes: tags of other tracks, single tags of
//! another codec, configurations that cannot be read. A codec has changed when [`CHANGE_TAGS`] tags in a row are of
//! another one; they are held back until that is known, so that none of them is lost.

use bytes::Bytes;

use super::aac::AacError;
use super::tag::{self, Unsupported};

/// So many tags in a row of another codec are no accident. Of AAC they are 0.1 s.
const CHANGE_TAGS: usize = 5;

/// Chooses one audio track of a publish and leaves out the rest. `At` is what the caller knows of a tag's time.
#[derive(Debug)]
pub struct Track<At> {
    /// The track that is heard, and whether it comes in multitrack packets: audio beside those is the first track.
    current: Option<(Codec, bool)>,
    held_codec: Option<Codec>,
    held: Vec<(At, Bytes)>,
}

/// Format bits of a classic tag, or the FourCC of an enhanced one.
type Codec = [u8; 4];

/// Tags to be heard, in classic form and in order; and what was not used.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<At> {
    pub tags: Vec<(At, Bytes)>,
    pub unused: Option<(Unused, usize)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    SideTrack,
    StrayCodec,
    BadConfig,
}

impl<At> Default for Track<At> {
    fn default() -> Self {
        Self { current: None, held_codec: None, held: Vec::new() }
    }
}

impl<At> Track<At> {
    /// The next tag, as sent. An error: all that comes is in a form that nobody decodes.
    pub fn take(&mut self, at: At, body: Bytes) -> Result<Taken<At>, Unsupported> {
        let (codec, is_multitrack) = (codec_of(&body), tag::is_multitrack(&body));
        if is_multitrack && matches!(self.current, Some((_, false))) {
            return Ok(Taken::unused(Unused::SideTrack, 1));
        }
        let classic = match tag::normalise(body) {
            Ok(None) => return Ok(Taken::nothing()),
            Ok(Some(classic)) => classic,
            Err(Unsupported::SideTrack) => return Ok(Taken::unused(Unused::SideTrack, 1)),
            Err(error) => return self.unusable(codec, at, error),
        };
        match tag::inspect(&classic) {
            Ok(None) => Ok(Taken::nothing()),
            Err(error) => self.unusable(codec, at, error),
            Ok(Some(_)) if self.current.is_none() || self.is_current(codec) => {
                self.current = Some((codec, is_multitrack));
                let strays = std::mem::take(&mut self.held).len();
                self.held_codec = None;
                Ok(Taken { tags: vec![(at, classic)], unused: (strays > 0).then_some((Unused::StrayCodec, strays)) })
            }
            Ok(Some(_)) => self.foreign(codec, at, Ok(classic)),
        }
    }

    /// Tags of another codec that wait to become a change.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn unusable(&mut self, codec: Codec, at: At, error: Unsupported) -> Result<Taken<At>, Unsupported> {
        match error {
            Unsupported::Aac(AacError::Short) => Ok(Taken::unused(Unused::BadConfig, 1)),
            Unsupported::Aac(_) if self.is_current(codec) => Ok(Taken::unused(Unused::BadConfig, 1)),
            error => self.foreign(codec, at, Err(error)),
        }
    }

    fn is_current(&self, codec: Codec) -> bool {
        self.current.is_some_and(|(current, _)| current == codec)
    }

    fn foreign(&mut self, codec: Codec, at: At, tag: Result<Bytes, Unsupported>) -> Result<Taken<At>, Unsupported> {
        let mut strays = 0;
        if self.held_codec != Some(codec) {
            strays = std::mem::take(&mut self.held).len();
            self.held_codec = Some(codec);
        }
        let error = tag.as_ref().err().copied();
        self.held.push((at, tag.unwrap_or_default()));
        let mut taken = Taken { tags: Vec::new(), unused: (strays > 0).then_some((Unused::StrayCodec, strays)) };
        if self.current.is_none() || self.held.len() >= CHANGE_TAGS {
            if let Some(error) = error {
                return Err(error);
            }
            self.current = Some((codec, false));
            self.held_codec = None;
            taken.tags = std::mem::take(&mut self.held);
        }
        Ok(taken)
    }
}

impl<At> Taken<At> {
    fn nothing() -> Self {
        Self { tags: Vec::new(), unused: None }
    }

    fn unused(what: Unused, count: usize) -> Self {
        Self { tags: Vec::new(), unused: Some((what, count)) }
    }
}

/// The same for a codec in its classic and its enhanced form.
fn codec_of(body: &[u8]) -> Codec {
    let format = |format: u8| [format, 0, 0, 0];
    match tag::fourcc(body) {
        Some(b"mp4a") => format(tag::AAC_FORMAT),
        Some(b".mp3") => format(tag::MP3_FORMAT),
        Some(fourcc) => *fourcc,
        None => format(body.first().map_or(0, |first| first >> 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(hex: &str) -> Bytes {
        hex::decode(hex).unwrap().into()
    }

    const CONFIG: &str = "af001210";
    const FRAME: &str = "af0121";
    const ALAW: &str = "7200112233";
    const MP3: &str = "2ffffb904400";
    /// Enhanced: Opus; AAC as the second track; as the first in a multitrack packet; behind a `ModEx` of one byte.
    const OPUS: &str = "914f70757301";
    const SECOND: &str = "95016d7034610121";
    const FIRST_OF_MANY: &str = "95116d70346100000001210100000122";
    const MOD_EX: &str = "9700aa016d70346121";

    /// Tags that are heard, by their numbers, and the counts of those that are not used.
    fn take(hex: &[&str]) -> (Vec<usize>, Vec<Unused>, Option<Unsupported>) {
        let mut track = Track::default();
        let (mut heard, mut unused) = (Vec::new(), Vec::new());
        for (n, hex) in hex.iter().enumerate() {
            match track.take(n, body(hex)) {
                Ok(taken) => {
                    heard.extend(taken.tags.into_iter().map(|(at, _)| at));
                    unused.extend(taken.unused.into_iter().flat_map(|(what, count)| vec![what; count]));
                }
                Err(error) => return (heard, unused, Some(error)),
            }
        }
        (heard, unused, None)
    }

    #[test]
    fn one_odd_tag_never_ends_a_healthy_publish() {
        for (odd, unused) in [
            (OPUS, Some(Unused::StrayCodec)),
            (ALAW, Some(Unused::StrayCodec)),
            ("c000", Some(Unused::StrayCodec)),
            (SECOND, Some(Unused::SideTrack)),
            (FIRST_OF_MANY, Some(Unused::SideTrack)),
            ("af0012", Some(Unused::BadConfig)),
            ("af00f8e640", Some(Unused::BadConfig)),
            ("af00", None),
            ("95", None),
            ("9701", None),
        ] {
            let (heard, seen, error) = take(&[CONFIG, FRAME, odd, FRAME]);
            assert_eq!((heard, seen, error), (vec![0, 1, 3], unused.into_iter().collect(), None), "{odd}");
        }
    }

    #[test]
    fn a_codec_that_really_changes_is_followed_without_a_loss() {
        let change = [&[CONFIG, FRAME][..], &[ALAW; 6], &[CONFIG], &[FRAME; 6], &[MP3; 5]].concat();
        assert_eq!(take(&change), ((0..change.len()).collect(), vec![], None));
        let (heard, _, error) = take(&[&[CONFIG, FRAME][..], &[OPUS; 5]].concat());
        assert_eq!((heard, error), (vec![0, 1], Some(Unsupported::Codec("opus"))));
    }

    #[test]
    fn two_codecs_in_turn_leave_the_first() {
        let (heard, unused, error) = take(&[CONFIG, FRAME, ALAW, OPUS, ALAW, FRAME, MP3, FRAME]);
        assert_eq!((heard, unused, error), (vec![0, 1, 5, 7], vec![Unused::StrayCodec; 4], None));
    }

    #[test]
    fn a_publish_that_begins_with_what_nobody_decodes_is_told_at_once() {
        assert_eq!(take(&[OPUS]).2, Some(Unsupported::Codec("opus")));
        assert_eq!(take(&["af00f8e640"]).2.map(Unsupported::as_str), Some("aac-eld"));
        assert_eq!(take(&["af0012", CONFIG, FRAME]), (vec![1, 2], vec![Unused::BadConfig], None));
    }

    #[test]
    fn the_first_of_many_tracks_is_heard_until_one_comes_alone() {
        let (heard, unused, _) = take(&[FIRST_OF_MANY, SECOND, MOD_EX, FIRST_OF_MANY, FRAME]);
        assert_eq!((heard, unused), (vec![0, 2, 4], vec![Unused::SideTrack; 2]));
        let mut track = Track::default();
        let tags = track.take((), body(FIRST_OF_MANY)).unwrap().tags;
        assert_eq!(tags, [((), body("af0121"))]);
        assert_eq!(track.take((), body(MOD_EX)).unwrap().tags, [((), body("af0121"))]);
    }
}
