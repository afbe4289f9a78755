//! ONNX Runtime, opened at run time from the model directory.

use std::path::Path;

use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use parking_lot::Mutex;

use super::super::models::{ModelDir, ModelError, RUNTIME};

// ONNX Runtime allows one environment per process for its whole life, so this cannot belong to an engine.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// Loads the library (once) and gives the environment that sessions are made in.
pub fn environment(models: &ModelDir) -> Result<Environment, ModelError> {
    let mut shared = ENVIRONMENT.lock();
    if let Some(environment) = &*shared {
        return Ok(environment.clone());
    }
    let path = models.path(RUNTIME);
    let invalid = |why: String| ModelError::Invalid { path: path.clone(), why };
    let builder = ort::init_from(&path).map_err(|e| invalid(e.to_string()))?;
    let environment = builder.with_telemetry(false).build().map_err(|e| invalid(e.to_string()))?;
    Ok(shared.insert(environment).clone())
}

/// One model, one thread: parallelism comes from many sessions, and spinning would burn the cores of others.
pub fn load(environment: &Environment, path: &Path) -> Result<Session, ModelError> {
    let open = || -> ort::Result<Session> {
        Session::builder(environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .commit_from_file(path)
    };
    open().map_err(|e| ModelError::Invalid { path: path.to_owned(), why: e.to_string() })
}
