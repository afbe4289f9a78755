//! AudioSpecificConfig (ISO 14496-3, 1.6.2.1): what an AAC stream holds.

use bytes::Bytes;

/// Sampling rates by index.
const RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];
/// The lowest of the table. A stream may name any rate, and a frame at 1 Hz would be 17 minutes of audio.
const MIN_RATE: u32 = 7_350;
const MAX_RATE: u32 = 192_000;
/// Object types that ffmpeg decodes: Main, LC, LTP, SBR, PS.
const DECODABLE: [u8; 5] = [1, 2, 4, 5, 29];
/// The flags before a program config element, and the shortest that there is, without any channel (ISO 14496-3, 4.4.1).
const GA_SPECIFIC_BITS: usize = 3;
const LEAST_PCE_BITS: usize = 34;

/// The parts of an AudioSpecificConfig that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AacConfig {
    /// 2 = LC, 5 = HE, 29 = HE v2.
    pub object_type: u8,
    /// Of the core: HE plays at twice this rate. Hz.
    pub rate: u32,
    /// Samples of the core in a frame: 1024 or 960 (HE plays twice as many).
    pub frame_samples: u32,
    /// 0 when the stream says it itself.
    pub channels: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AacError {
    #[error("the AAC configuration is cut short")]
    Short,
    #[error("AAC with a sampling rate of {0} Hz; {MIN_RATE} to {MAX_RATE} are allowed")]
    Rate(u32),
    #[error("AAC object type {0} is not supported; send AAC-LC or HE-AAC")]
    ObjectType(u8),
}

impl AacConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, AacError> {
        let mut bits = Bits { bytes, at: 0 };
        let object_type = bits.object_type()?;
        if !DECODABLE.contains(&object_type) {
            return Err(AacError::ObjectType(object_type));
        }
        let rate = bits.rate()?;
        let channels = bits.take(4)? as u8;
        if matches!(object_type, 5 | 29) {
            bits.rate()?;
            let core = bits.object_type()?;
            if !DECODABLE.contains(&core) {
                return Err(AacError::ObjectType(core));
            }
        }
        if !(MIN_RATE..=MAX_RATE).contains(&rate) {
            return Err(AacError::Rate(rate));
        }
        let frame_samples = if bits.take(1)? == 1 { 960 } else { 1024 };
        Ok(Self { object_type, rate, frame_samples, channels })
    }

    /// The configuration in a header of seven bytes before a frame (ADTS: ISO 13818-7, 6.2).
    pub fn of_adts(header: [u8; 7]) -> Result<Self, AacError> {
        let (profile, index) = (header[2] >> 6, header[2] >> 2 & 15);
        let object_type = profile + 1;
        if !DECODABLE.contains(&object_type) {
            return Err(AacError::ObjectType(object_type));
        }
        let rate = RATES.get(usize::from(index)).copied().ok_or(AacError::Rate(0))?;
        // 0: the frame says it itself, where a configuration cannot.
        let channels = match (header[2] & 1) << 2 | header[3] >> 6 {
            0 => 2,
            channels => channels,
        };
        Ok(Self { object_type, rate, frame_samples: 1024, channels })
    }

    /// The body of an FLV tag that says it. For configurations of ADTS, whose rates are of the table.
    pub fn sequence_header(&self) -> Bytes {
        let index = RATES.iter().position(|rate| *rate == self.rate).expect("a rate of the table") as u8;
        let bytes = [0xAF, 0, self.object_type << 3 | index >> 1, index << 7 | self.channels << 3];
        Bytes::copy_from_slice(&bytes)
    }

    /// Is `other`, which knows nothing of HE, the core of this?
    pub fn is_core_of(&self, other: &Self) -> bool {
        let is_same_type = self.object_type == other.object_type || matches!(self.object_type, 5 | 29);
        let are_same_channels = self.channels == other.channels || self.channels == 0 || self.object_type == 29;
        is_same_type && self.rate == other.rate && are_same_channels
    }

    pub fn name(&self) -> &'static str {
        match self.object_type {
            2 => "AAC-LC",
            5 => "HE-AAC",
            29 => "HE-AAC v2",
            _ => "AAC",
        }
    }
}

/// Completes a configuration that leaves the channels to a program config element and has none in it.
///
/// Channel configuration 0 becomes that of two channels. Then a decoder takes one or two of them, or as many as an
/// element in the frames says; else it does not even start. `None`: nothing is missing.
pub fn with_channels(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bits = Bits { bytes, at: 0 };
    let object_type = bits.object_type().ok()?;
    bits.rate().ok()?;
    let at = bits.at;
    if bits.take(4).ok()? != 0 {
        return None;
    }
    if matches!(object_type, 5 | 29) {
        bits.rate().ok()?;
        bits.object_type().ok()?;
    }
    let mut fixed = bytes.to_vec();
    fixed[(at + 2) / 8] |= 0x80 >> ((at + 2) % 8);
    (bytes.len() * 8 - bits.at < GA_SPECIFIC_BITS + LEAST_PCE_BITS).then_some(fixed)
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> Result<u32, AacError> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8).ok_or(AacError::Short)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(value)
    }

    fn object_type(&mut self) -> Result<u8, AacError> {
        match self.take(5)? {
            31 => Ok(32 + self.take(6)? as u8),
            small => Ok(small as u8),
        }
    }

    fn rate(&mut self) -> Result<u32, AacError> {
        match self.take(4)? {
            15 => self.take(24),
            index => RATES.get(index as usize).copied().ok_or(AacError::Rate(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hex: &str) -> Result<(u8, u32, u32, u8), AacError> {
        AacConfig::parse(&hex::decode(hex).unwrap()).map(|c| (c.object_type, c.rate, c.frame_samples, c.channels))
    }

    #[test]
    fn configurations_of_real_encoders() {
        assert_eq!(parse("1190"), Ok((2, 48_000, 1024, 2)));
        assert_eq!(parse("119056e500"), Ok((2, 48_000, 1024, 2)));
        assert_eq!(parse("1210"), Ok((2, 44_100, 1024, 2)));
        assert_eq!(parse("1188"), Ok((2, 48_000, 1024, 1)));
        assert_eq!(parse("1010"), Ok((2, 96_000, 1024, 2)));
        assert_eq!(parse("11b0"), Ok((2, 48_000, 1024, 6)));
        assert_eq!(parse("2b118800"), Ok((5, 24_000, 1024, 2)));
        assert_eq!(parse("eb098800"), Ok((29, 24_000, 1024, 1)));
    }

    #[test]
    fn a_configuration_that_does_not_say_its_channels_has_two() {
        let fixed = |hex: &str| with_channels(&hex::decode(hex).unwrap()).map(hex::encode);
        assert_eq!(fixed("1180"), Some("1190".to_owned()));
        assert_eq!(fixed("118056e500"), Some("119056e500".to_owned()));
        assert_eq!(fixed("2b018800"), Some("2b118800".to_owned()));
        for good in ["1190", "1188", "11", "", "118004c844002000c40d4c61766335392e33372e31303056e500"] {
            assert_eq!(fixed(good), None, "{good}");
        }
    }

    #[test]
    fn what_ffmpeg_cannot_decode_is_refused() {
        assert_eq!(parse("b99100"), Err(AacError::ObjectType(23)));
        assert_eq!(parse("f8e640"), Err(AacError::ObjectType(39)));
        assert_eq!(parse("1680"), Err(AacError::Rate(0)));
        // A rate of its own, written out: 60 frames of three bytes would be 17 hours, and 2 GB of PCM.
        assert_eq!(parse("1780000090"), Err(AacError::Rate(1)));
        assert_eq!(parse("178017a510"), Ok((2, 12_106, 1024, 2)));
        assert_eq!(parse("11"), Err(AacError::Short));
        assert_eq!(parse(""), Err(AacError::Short));
    }
}
