//! AudioSpecificConfig: what is accepted is in range, and what follows the configuration does not change it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stenocast::audio::aac::{AacConfig, AacError};

fuzz_target!(|data: &[u8]| {
    let parsed = AacConfig::parse(data);
    let longer = AacConfig::parse(&[data, &[0x56, 0xE5, 0]].concat());
    match parsed {
        Ok(config) => {
            assert!((1..=192_000).contains(&config.rate) && config.channels < 16);
            assert!(matches!(config.frame_samples, 960 | 1024) && config.name().contains("AAC"));
            assert_eq!(longer, Ok(config));
        }
        Err(AacError::Short) => assert!(data.len() < 16, "a configuration is shorter than 16 bytes"),
        Err(error) => assert_eq!(longer, Err(error)),
    }
});
