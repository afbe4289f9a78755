//! A session's audio as it was acknowledged, in a file without a name (with `keep_audio`).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::super::audio::{Encoding, Format};

pub const HEADER_BYTES: u64 = 44;

pub struct Recording {
    file: File,
    format: Format,
    bytes: u64,
}

impl Recording {
    /// The file is removed at once; the disk is free again when the recording is dropped.
    pub fn create(format: Format) -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("stenocast-{}.pcm", uuid::Uuid::new_v4()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file, format, bytes: 0 })
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Length of the WAV file.
    pub fn wav_bytes(&self) -> u64 {
        HEADER_BYTES + self.bytes
    }

    /// Up to `limit` bytes of the WAV file from `offset`; empty at its end. Blocks on the disk.
    pub fn read_wav(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        if offset < HEADER_BYTES {
            return Ok(Bytes::copy_from_slice(&self.header()[offset as usize..]));
        }
        let at = offset - HEADER_BYTES;
        let mut buffer = vec![0; limit.min(self.bytes.saturating_sub(at) as usize)];
        self.file.read_exact_at(&mut buffer, at)?;
        Ok(buffer.into())
    }

    fn header(&self) -> [u8; HEADER_BYTES as usize] {
        let code: u16 = match self.format.encoding {
            Encoding::Pcm => 1,
            Encoding::Alaw => 6,
            Encoding::Ulaw => 7,
        };
        let frame = self.format.frame_bytes() as u32;
        let data = self.bytes.min(u64::from(u32::MAX - 36)) as u32;
        let mut header = [0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(b"RIFF");
        header[4..8].copy_from_slice(&(36 + data).to_le_bytes());
        header[8..16].copy_from_slice(b"WAVEfmt ");
        header[16..20].copy_from_slice(&16u32.to_le_bytes());
        header[20..22].copy_from_slice(&code.to_le_bytes());
        header[22..24].copy_from_slice(&(self.format.channels as u16).to_le_bytes());
        header[24..28].copy_from_slice(&self.format.sample_rate.to_le_bytes());
        header[28..32].copy_from_slice(&(self.format.bytes_per_second() as u32).to_le_bytes());
        header[32..34].copy_from_slice(&(frame as u16).to_le_bytes());
        header[34..36].copy_from_slice(&((frame / self.format.channels * 8) as u16).to_le_bytes());
        header[36..40].copy_from_slice(b"data");
        header[40..44].copy_from_slice(&data.to_le_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_wav_of_what_was_appended() {
        let format = Format { encoding: Encoding::Pcm, bit_depth: 16, sample_rate: 16_000, channels: 1 };
        let mut recording = Recording::create(format).unwrap();
        recording.append(&[1, 0, 2, 0]).unwrap();
        recording.append(&[3, 0]).unwrap();
        let mut wav = Vec::new();
        loop {
            let piece = recording.read_wav(wav.len() as u64, 4).unwrap();
            if piece.is_empty() {
                break;
            }
            wav.extend(piece);
        }
        assert_eq!(wav.len() as u64, recording.wav_bytes());
        let mut reader = hound::WavReader::new(wav.as_slice()).unwrap();
        assert_eq!(reader.samples::<i16>().map(Result::unwrap).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
