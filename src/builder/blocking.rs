//! Steps of a build that block a thread.

use larder_model::class::Class;
use larder_model::event::Failure;

/// Runs `work` on a thread that can block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Vec<Failure>> {
    match crate::blocking::spawn(work).await {
        Ok(result) => result.map_err(|fail| vec![fail]),
        Err(e) => Err(vec![Failure::job(Class::Internal, format!("a step of the build failed: {e}"))]),
    }
}
