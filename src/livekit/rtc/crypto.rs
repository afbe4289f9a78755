//! The functions of cryptography that str0m asks for, in pure Rust: no second library of OpenSSL's kind is built for them.
//!
//! DTLS is dimpl's. SRTP (RFC 3711, RFC 7714) must be there for a handshake to succeed, although no media flows.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aes::cipher::{BlockEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use aes_gcm::aead::AeadInPlace;
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use dimpl::{Dtls, DtlsCertificate, ProtocolVersion};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use str0m::crypto::dtls::{DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion};
use str0m::crypto::{
    AeadAes128GcmCipher, AeadAes256GcmCipher, Aes128CmSha1_80Cipher, CryptoError, CryptoProvider, Sha1HmacProvider,
    Sha256Provider, SrtpProvider, SupportedAeadAes128Gcm, SupportedAeadAes256Gcm, SupportedAes128CmSha1_80,
};

const BLOCK_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// The functions, as str0m takes them.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = || {
        Arc::new(CryptoProvider {
            srtp_provider: &Pure,
            sha1_hmac_provider: &Pure,
            sha256_provider: &Pure,
            dtls_provider: &Pure,
        })
    };
    PROVIDER.get_or_init(provider).clone()
}

/// The certificate of this process, made once: a peer knows it by its fingerprint, and it lives as long as we do.
pub fn certificate() -> Option<DtlsCert> {
    static CERTIFICATE: OnceLock<Option<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    let (certificate, private_key) = CERTIFICATE.get_or_init(|| self_signed().ok()).clone()?;
    Some(DtlsCert { certificate, private_key })
}

/// Certificate and private key in DER.
fn self_signed() -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
    // Unique over all processes: a browser that sees a number twice refuses the second certificate.
    params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
    let certificate = params.self_signed(&key)?;
    Ok((certificate.der().to_vec(), key.serialize_der()))
}

#[derive(Debug)]
struct Pure;

impl Sha1HmacProvider for Pure {
    fn sha1_hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        let mut mac = <Hmac<Sha1> as Mac>::new_from_slice(key).expect("a key of any length is one");
        payloads.iter().for_each(|payload| mac.update(payload));
        mac.finalize().into_bytes().into()
    }
}

impl Sha256Provider for Pure {
    fn sha256(&self, data: &[u8]) -> [u8; 32] {
        Sha256::digest(data).into()
    }
}

impl DtlsProvider for Pure {
    fn generate_certificate(&self) -> Option<DtlsCert> {
        certificate()
    }

    fn new_dtls(
        &self,
        cert: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        // ICE has proved the way back already, which a server's cookie would prove.
        let config = dimpl::Config::builder().use_server_cookie(false);
        let config = match mtu {
            Some(mtu) => config.mtu(mtu),
            None => config,
        };
        let config = config.build().map_err(|error| CryptoError::Other(error.to_string()))?;
        let cert = DtlsCertificate { certificate: cert.certificate.clone(), private_key: cert.private_key.clone() };
        match version {
            DtlsVersion::Dtls12 => Ok(Box::new(Handshake(Dtls::new_12(Arc::new(config), cert, now)))),
            other => Err(CryptoError::Other(format!("{other} is not asked for"))),
        }
    }
}

struct Handshake(Dtls);

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshake")
    }
}

impl DtlsInstance for Handshake {
    fn set_active(&mut self, active: bool) {
        self.0.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.0.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buf: &'a mut [u8]) -> DtlsOutput<'a> {
        self.0.poll_output(buf)
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.0.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<(), DtlsImplError> {
        self.0.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.0.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.0.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.0.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.0.close()
    }
}

impl SrtpProvider for Pure {
    fn aes_128_cm_sha1_80(&self) -> &'static dyn SupportedAes128CmSha1_80 {
        &Pure
    }

    fn aead_aes_128_gcm(&self) -> &'static dyn SupportedAeadAes128Gcm {
        &Pure
    }

    fn aead_aes_256_gcm(&self) -> &'static dyn SupportedAeadAes256Gcm {
        &Pure
    }

    fn srtp_aes_128_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        let key: &[u8; 16] = key.try_into().expect("a key of AES-128");
        ecb_round(&Aes128::new(key.into()), input, output);
    }

    fn srtp_aes_256_ecb_round(&self, key: &[u8], input: &[u8], output: &mut [u8]) {
        let key: &[u8; 32] = key.try_into().expect("a key of AES-256");
        ecb_round(&Aes256::new(key.into()), input, output);
    }
}

/// One block. `output` may be longer; what follows the block is not looked at.
fn ecb_round<C: BlockEncrypt<BlockSize = aes::cipher::consts::U16>>(cipher: &C, input: &[u8], output: &mut [u8]) {
    let mut block = <[u8; BLOCK_BYTES]>::try_from(&input[..BLOCK_BYTES]).expect("so many bytes").into();
    cipher.encrypt_block(&mut block);
    output[..BLOCK_BYTES].copy_from_slice(&block);
}

impl SupportedAes128CmSha1_80 for Pure {
    fn create_cipher(&self, key: [u8; 16], _: bool) -> Box<dyn Aes128CmSha1_80Cipher> {
        Box::new(Sealed(Aes128::new(&key.into())))
    }
}

impl SupportedAeadAes128Gcm for Pure {
    fn create_cipher(&self, key: [u8; 16], _: bool) -> Box<dyn AeadAes128GcmCipher> {
        Box::new(Sealed(Aes128Gcm::new(&key.into())))
    }
}

impl SupportedAeadAes256Gcm for Pure {
    fn create_cipher(&self, key: [u8; 32], _: bool) -> Box<dyn AeadAes256GcmCipher> {
        Box::new(Sealed(Aes256Gcm::new(&key.into())))
    }
}

/// A cipher that does not show its key.
struct Sealed<C>(C);

impl<C> fmt::Debug for Sealed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

/// Counter mode: the same both ways.
impl Aes128CmSha1_80Cipher for Sealed<Aes128> {
    fn encrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        let counter = u128::from_be_bytes(*iv);
        for (n, (from, to)) in input.chunks(16).zip(output.chunks_mut(16)).enumerate() {
            let mut key_stream = counter.wrapping_add(n as u128).to_be_bytes().into();
            self.0.encrypt_block(&mut key_stream);
            from.iter().zip(to).zip(key_stream).for_each(|((from, to), key)| *to = from ^ key);
        }
        Ok(())
    }

    fn decrypt(&mut self, iv: &[u8; 16], input: &[u8], output: &mut [u8]) -> Result<(), CryptoError> {
        self.encrypt(iv, input, output)
    }
}

/// The text, then its tag.
fn seal<C: AeadInPlace<NonceSize = aes::cipher::consts::U12, TagSize = aes::cipher::consts::U16>>(
    cipher: &C,
    iv: &[u8; 12],
    aad: &[u8],
    input: &[u8],
    output: &mut [u8],
) -> Result<(), CryptoError> {
    let (text, rest) = output.split_at_mut(input.len());
    text.copy_from_slice(input);
    let tag = cipher.encrypt_in_place_detached(iv.into(), aad, text).map_err(|_| broken())?;
    rest[..TAG_BYTES].copy_from_slice(&tag);
    Ok(())
}

/// The bytes of the text without its tag.
fn open<C: AeadInPlace<NonceSize = aes::cipher::consts::U12, TagSize = aes::cipher::consts::U16>>(
    cipher: &C,
    iv: &[u8; 12],
    aads: &[&[u8]],
    input: &[u8],
    output: &mut [u8],
) -> Result<usize, CryptoError> {
    let (text, tag) = input.split_last_chunk::<TAG_BYTES>().ok_or_else(broken)?;
    let output = output.get_mut(..text.len()).ok_or_else(broken)?;
    output.copy_from_slice(text);
    let opened = cipher.decrypt_in_place_detached(iv.into(), &aads.concat(), output, tag.into());
    opened.map(|()| text.len()).map_err(|_| broken())
}

fn broken() -> CryptoError {
    CryptoError::Other("the packet is not authentic".to_owned())
}

macro_rules! gcm {
    ($cipher:ty, $kind:ident) => {
        impl $kind for Sealed<$cipher> {
            fn encrypt(
                &mut self,
                iv: &[u8; 12],
                aad: &[u8],
                input: &[u8],
                output: &mut [u8],
            ) -> Result<(), CryptoError> {
                seal(&self.0, iv, aad, input, output)
            }

            fn decrypt(
                &mut self,
                iv: &[u8; 12],
                aads: &[&[u8]],
                input: &[u8],
                output: &mut [u8],
            ) -> Result<usize, CryptoError> {
                open(&self.0, iv, aads, input, output)
            }
        }
    };
}

gcm!(Aes128Gcm, AeadAes128GcmCipher);
gcm!(Aes256Gcm, AeadAes256GcmCipher);

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202, case 2, and FIPS 180-2.
    #[test]
    fn digests_are_those_of_the_standards() {
        let mac = Pure.sha1_hmac(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(hex::encode(mac), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex::encode(Pure.sha256(b"abc")), digest);
    }

    /// RFC 3711, appendix B.2: the key stream, also over a carry of its counter.
    #[test]
    fn the_key_stream_is_that_of_the_standard() {
        let key: [u8; 16] = hex::decode("2B7E151628AED2A6ABF7158809CF4F3C").unwrap().try_into().unwrap();
        let iv: [u8; 16] = hex::decode("F0F1F2F3F4F5F6F7F8F9FAFBFCFD0000").unwrap().try_into().unwrap();
        let mut cipher = SupportedAes128CmSha1_80::create_cipher(&Pure, key, true);
        let mut stream = [0; 40];
        cipher.encrypt(&iv, &[0; 40], &mut stream).unwrap();
        assert_eq!(hex::encode(&stream[..32]), "e03ead0935c95e80e166b16dd92b4eb4d23513162b02d0f72a43a2fe4a5f97ab");
        let mut back = [7; 40];
        cipher.decrypt(&iv, &stream, &mut back).unwrap();
        assert_eq!(back, [0; 40]);
    }

    /// FIPS 197, appendices C.1 and C.3.
    #[test]
    fn a_block_is_that_of_the_standard() {
        let key: Vec<u8> = (0..32).collect();
        let input = hex::decode("00112233445566778899aabbccddeeff").unwrap();
        let mut output = [0; 32];
        Pure.srtp_aes_128_ecb_round(&key[..16], &input, &mut output);
        assert_eq!(hex::encode(&output[..16]), "69c4e0d86a7b0430d8cdb78070b4c55a");
        Pure.srtp_aes_256_ecb_round(&key, &input, &mut output);
        assert_eq!(hex::encode(&output[..16]), "8ea2b7ca516745bfeafc49904b496089");
    }

    #[test]
    fn a_packet_that_was_changed_does_not_open() {
        let mut cipher = SupportedAeadAes128Gcm::create_cipher(&Pure, [7; 16], true);
        let (mut sealed, mut text) = ([0; 21], [0; 5]);
        cipher.encrypt(&[1; 12], b"header", b"hello", &mut sealed).unwrap();
        assert_eq!(cipher.decrypt(&[1; 12], &[b"hea", b"der"], &sealed, &mut text).unwrap(), 5);
        assert_eq!(&text, b"hello");
        assert!(cipher.decrypt(&[1; 12], &[b"Header"], &sealed, &mut text).is_err());
        sealed[20] ^= 1;
        assert!(cipher.decrypt(&[1; 12], &[b"header"], &sealed, &mut text).is_err());
        assert!(cipher.decrypt(&[1; 12], &[b"header"], &sealed[..9], &mut text).is_err(), "shorter than its tag");
    }

    #[test]
    fn the_certificate_stays_the_same() {
        let (a, b) = (certificate().unwrap(), certificate().unwrap());
        assert!(a.certificate == b.certificate && !a.private_key.is_empty());
    }
}
