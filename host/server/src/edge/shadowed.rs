//! The body of an answer that is compared with another version's, once it is on its way.
//!
//! Whoever takes the body drops it when it has been read, before what was read is written to the
//! connection. So the comparison is handed over by a task of its own, for which the task of the
//! connection makes room when it has written. A caller that left before is as good as any other.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tokio::runtime::Handle;

use guesthouse_control::shadow::{Comparison, Shadows};

/// Have the answer compared when it has been taken.
pub(super) fn compare_after(
    response: Response,
    comparison: Option<Comparison>,
    shadows: &Arc<Shadows>,
) -> Response {
    let Some(comparison) = comparison else { return response };
    let then = then(comparison, shadows);
    response.map(|body| {
        // The one wrapping that leaves the body and its length as they are; it owns what it is given.
        Body::new(body.map_err(move |error| {
            let _owned = &then;
            error
        }))
    })
}

/// Have the answer compared when what comes back is dropped.
pub(super) fn then(comparison: Comparison, shadows: &Arc<Shadows>) -> Then {
    Then(Some((comparison, Arc::clone(shadows))))
}

/// Hands the comparison over when it is dropped.
pub(super) struct Then(Option<(Comparison, Arc<Shadows>)>);

impl Drop for Then {
    fn drop(&mut self) {
        let Some((comparison, shadows)) = self.0.take() else { return };
        // Where there is no runtime any more, there is nobody who waits either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { shadows.submit(comparison) });
        }
    }
}
