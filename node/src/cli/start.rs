//! x
use super::{Failure, Global};
use clap::Args;
/// x
#[derive(Args, Debug)]
pub struct StartArgs {}
#[allow(clippy::unused_async, reason = "x")]
pub(super) async fn run(_global: &Global, _args: StartArgs) -> Result<(), Failure> {
    Ok(())
}
