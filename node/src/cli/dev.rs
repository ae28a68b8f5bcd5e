//! x
use super::{Failure, Global};
use clap::Args;
/// x
#[derive(Args, Debug)]
pub struct DevArgs {
    #[arg(skip)]
    pub(super) command: Option<()>,
}
#[allow(clippy::unused_async, reason = "x")]
pub(super) async fn run(_global: &Global, _args: DevArgs) -> Result<(), Failure> {
    Ok(())
}
