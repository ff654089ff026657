//! The body of an answer that is compared with another version's, once it is on its way.
//!
//! Whoever takes the body drops it when it has been read, before what was read is written to the
//! connection. So the comparison is handed over by a task of its own, for which the task of the
//! connection makes room when it has written. A caller that left before is as good as any other.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

use crate::shadow::{Comparison, Shadows};

/// Have the answer compared when it has been taken.
pub(super) fn compare_after(
    response: Response,
    comparison: Option<Comparison>,
    shadows: &Arc<Shadows>,
) -> Response {
    let Some(comparison) = comparison else { return response };
    let then = Some((comparison, Arc::clone(shadows)));
    response.map(|body| Body::new(Shadowed { body, then }))
}

struct Shadowed {
    body: Body,
    then: Option<(Comparison, Arc<Shadows>)>,
}

impl HttpBody for Shadowed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Shadowed {
    fn drop(&mut self) {
        let Some((comparison, shadows)) = self.then.take() else { return };
        // Where there is no runtime any more, there is nobody who waits either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { shadows.offer(comparison) });
        }
    }
}
