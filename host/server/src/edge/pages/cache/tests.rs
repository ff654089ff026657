//! What is computed how often, and what is kept.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::Poll;

use super::*;

impl MemorySize for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// A table, and the state that its values are a function of.
#[derive(Clone)]
struct Rig {
    table: Arc<RenderCache<usize, u64, Vec<u8>>>,
    state: Arc<AtomicU64>,
    computed: Arc<AtomicUsize>,
}

type Asked = Pin<Box<dyn Future<Output = Outcome<Vec<u8>>> + Send>>;

impl Rig {
    fn new() -> Self {
        let table = Arc::new(RenderCache::new(RenderThreads::start().unwrap()));
        Self { table, state: Arc::default(), computed: Arc::default() }
    }

    /// Ask for what `make` returns; for what depends on the state alone, or on more than that.
    fn ask(
        &self,
        key: usize,
        depends_on_more: bool,
        make: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Asked {
        let Self { table, state, computed } = self.clone();
        let state = move || (!depends_on_more).then(|| state.load(Ordering::SeqCst));
        let make = move || {
            computed.fetch_add(1, Ordering::SeqCst);
            Ok(make())
        };
        Box::pin(async move { table.get(key, state, make).await })
    }

    async fn get(&self, key: usize, value: Vec<u8>) -> Arc<Vec<u8>> {
        self.ask(key, false, move || value).await.unwrap()
    }

    async fn get_fresh(&self, key: usize, value: Vec<u8>) -> Arc<Vec<u8>> {
        self.ask(key, true, move || value).await.unwrap()
    }
}

/// Ask, and see that there is no answer yet.
async fn begin(asked: &mut Asked) {
    let is_pending =
        std::future::poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending()));
    assert!(is_pending.await);
}

#[tokio::test]
async fn a_value_is_cached_while_its_state_is_unchanged() {
    let rig = Rig::new();
    assert_eq!(*rig.get(0, vec![1]).await, [1]);
    assert_eq!(*rig.get(0, vec![2]).await, [1]);
    rig.state.fetch_add(1, Ordering::SeqCst);
    assert_eq!(*rig.get(0, vec![3]).await, [3]);
    // What depends on more than the state is computed for each request, unless it is large.
    assert_eq!(*rig.get_fresh(1, vec![4]).await, [4]);
    assert_eq!(*rig.get_fresh(1, vec![5]).await, [5]);
    assert_eq!(rig.get_fresh(2, vec![6; MAX_FRESH_BYTES + 1]).await[0], 6);
    let again = rig.get_fresh(2, vec![7; MAX_FRESH_BYTES + 1]).await[0];
    assert!(again == 6 || rig.computed.load(Ordering::SeqCst) == 6);
}

#[tokio::test]
async fn a_value_of_a_changed_state_is_not_cached() {
    let rig = Rig::new();
    let state = Arc::clone(&rig.state);
    let make = move || {
        state.fetch_add(1, Ordering::SeqCst);
        vec![1]
    };
    assert_eq!(*rig.ask(0, false, make).await.unwrap(), [1]);
    assert_eq!(*rig.get(0, vec![2]).await, [2]);
}

#[tokio::test]
async fn callers_share_sufficiently_recent_computations() {
    let rig = Rig::new();
    let (mut gates, mut blocked) = (Vec::new(), Vec::new());
    // Every thread is busy, one of them with the value of key 0.
    for key in 0..THREADS {
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let mut asked = rig.ask(key, false, move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            vec![1]
        });
        begin(&mut asked).await;
        has_begun.await.unwrap();
        gates.push(go_on);
        blocked.push(asked);
    }
    // In the same state, others wait for it; what depends on more is computed once for all of them.
    let mut same: Vec<_> = (0..50).map(|_| rig.ask(0, false, || vec![2])).collect();
    let mut fresh: Vec<_> = (0..50).map(|_| rig.ask(9, true, || vec![3])).collect();
    for asked in same.iter_mut().chain(&mut fresh) {
        begin(asked).await;
    }
    // In another state, they wait for the next one.
    rig.state.fetch_add(1, Ordering::SeqCst);
    let mut later: Vec<_> = (0..50).map(|_| rig.ask(0, false, || vec![4])).collect();
    for asked in &mut later {
        begin(asked).await;
    }
    gates.iter().for_each(|gate| gate.send(()).unwrap());
    for (all, value) in [(blocked, 1), (same, 1), (fresh, 3), (later, 4)] {
        for asked in all {
            assert_eq!(*asked.await.unwrap(), [value]);
        }
    }
    assert_eq!(rig.computed.load(Ordering::SeqCst), THREADS + 2);
}

#[tokio::test]
async fn a_panic_fails_its_waiters_and_is_not_cached() {
    let rig = Rig::new();
    let outcome = rig.ask(0, false, || panic!("on purpose")).await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(*rig.get(0, vec![1]).await, [1]);
}

#[tokio::test]
async fn the_number_of_waiting_callers_is_bounded() {
    let rig = Rig::new();
    let (mut gates, mut asked) = (Vec::new(), Vec::new());
    for key in 0..THREADS {
        let (go_on, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let mut one = rig.ask(key, false, move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            vec![]
        });
        begin(&mut one).await;
        has_begun.await.unwrap();
        gates.push(go_on);
        asked.push(one);
    }
    for key in 0..MAX_QUEUED {
        let mut one = rig.ask(THREADS + key, false, Vec::new);
        begin(&mut one).await;
        asked.push(one);
    }
    let refused = rig.ask(THREADS + MAX_QUEUED, false, Vec::new).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Overloaded);
    gates.iter().for_each(|gate| gate.send(()).unwrap());
    for one in asked {
        one.await.unwrap();
    }
    rig.get(THREADS + MAX_QUEUED, vec![]).await;
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let rig = Rig::new();
    for number in 0..2 * MAX_VALUES {
        rig.get(number, vec![0; 10]).await;
    }
    {
        let inner = rig.table.lock();
        assert_eq!((inner.entries.len(), inner.bytes), (MAX_VALUES, 10 * MAX_VALUES));
        // Those that were asked for last.
        assert!(inner.entries.keys().all(|number| *number >= MAX_VALUES));
    }
    for number in 0..3 {
        rig.get(number, vec![0; MAX_BYTES / 2]).await;
        assert!(rig.table.lock().bytes <= MAX_BYTES);
    }
    // What is larger than all that may be kept is answered all the same.
    assert_eq!(rig.get(9, vec![0; MAX_BYTES + 1]).await.len(), MAX_BYTES + 1);
    assert!(rig.table.lock().bytes <= MAX_BYTES);
}
