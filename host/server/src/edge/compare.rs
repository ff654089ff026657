//! Comparing an answer with a shadow's, once the answer is on its way.
//!
//! The body of an answer is dropped when it has been read, before what was read is written to the
//! connection. So a task of its own hands the comparison over; it runs when the connection's task has
//! written and waits. A caller that has left makes no difference.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tokio::runtime::Handle;

use guesthouse_control::shadow::{Comparison, Shadows};

/// Hands a comparison over to the shadows when it is dropped, so that whatever owns it decides when.
pub(super) struct CompareOnDrop(Option<(Comparison, Arc<Shadows>)>);

impl CompareOnDrop {
    pub(super) fn new(comparison: Comparison, shadows: &Arc<Shadows>) -> Self {
        Self(Some((comparison, Arc::clone(shadows))))
    }

    /// The response, whose body owns this from now on.
    pub(super) fn attach_to(self, response: Response) -> Response {
        response.map(|body| {
            // The one wrapping that leaves the body and its length as they are; it owns what it is given.
            Body::new(body.map_err(move |error| {
                let _owned = &self;
                error
            }))
        })
    }
}

impl Drop for CompareOnDrop {
    fn drop(&mut self) {
        let Some((comparison, shadows)) = self.0.take() else { return };
        // Without a runtime, the server has stopped.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { shadows.submit(comparison) });
        }
    }
}
