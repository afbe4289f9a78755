//! What CONTRIBUTING.md and ARCHITECTURE.md say of the code, read from the code.

mod ceilings;
mod deploy;
mod layers;
mod names;
mod scale;
mod sleeps;
mod source;
