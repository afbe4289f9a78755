//! Silero voice activity detection: one probability per 512 samples.

use ort::session::Session;
use ort::value::{DynValue, Tensor};

use super::super::models::{ModelDir, ModelError, VAD};
use super::runtime;

/// Samples per probability (32 ms).
pub const WINDOW: usize = 512;
/// The model sees the end of the previous window before each one.
const CONTEXT: usize = 64;
const STATE_SHAPE: [usize; 3] = [2, 1, 128];

/// The model; one per thread, shared by all streams.
pub struct Vad {
    session: Session,
}

/// The model's memory of one stream.
pub struct VadState {
    memory: DynValue,
    context: [f32; CONTEXT],
}

impl Vad {
    pub fn load(models: &ModelDir) -> Result<Self, ModelError> {
        let environment = runtime::environment(models)?;
        Ok(Self { session: runtime::load(&environment, &models.path(VAD))? })
    }

    pub fn state(&self) -> ort::Result<VadState> {
        let memory = Tensor::from_array((STATE_SHAPE, vec![0f32; STATE_SHAPE.iter().product()]))?.into_dyn();
        Ok(VadState { memory, context: [0.0; CONTEXT] })
    }

    /// Probability of speech in `window` ([`WINDOW`] samples).
    pub fn probability(&mut self, state: &mut VadState, window: &[i16]) -> ort::Result<f32> {
        let mut input = Vec::with_capacity(CONTEXT + WINDOW);
        input.extend(state.context);
        input.extend(window.iter().map(|&s| f32::from(s) / 32768.0));
        state.context.copy_from_slice(&input[input.len() - CONTEXT..]);
        let input = Tensor::from_array(([1, input.len()], input))?;
        let rate = Tensor::from_array(([0usize; 0], vec![16_000i64]))?;
        let mut outputs = self.session.run(ort::inputs!["input" => input, "state" => &state.memory, "sr" => rate])?;
        let (_, probability) = outputs["output"].try_extract_tensor::<f32>()?;
        let probability = probability.first().copied().unwrap_or(0.0);
        if let Some(memory) = outputs.remove("stateN") {
            state.memory = memory;
        }
        Ok(probability)
    }
}
