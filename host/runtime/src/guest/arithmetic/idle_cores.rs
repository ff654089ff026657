//! Large operations on several cores, while there are cores on which no guest runs.
//!
//! A guest runs on one core. A large operation is split into parts with the same results, and
//! threads of the host compute some of them. A core counts as idle if no guest runs on it, so the
//! threads take no core from requests that are being served, and under load operations are not
//! split. All guests of a version and the cores that help them stay within the version's share of
//! the inference threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use guesthouse_arithmetic::{Backend, Stopped};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::operation::CheckedCall;

/// The least work, in multiplications, that is worth waking another thread: it takes one core a
/// multiple of the microseconds that a thread needs to wake up.
const MIN_WORK: u64 = 2_000_000;

/// The parts for each core: more than one, so that a thread that wakes up late leaves its parts to
/// the others.
const PARTS_PER_CORE: usize = 3;

/// The cores of the process, and threads for those that are idle.
pub(in crate::guest) struct IdleCores {
    cores: usize,
    /// Cores on which guests run or that help them.
    busy: AtomicUsize,
    /// None if there is only one core.
    threads: Option<ThreadPool>,
}

/// The inference threads that a version may occupy.
#[derive(Debug)]
pub(in crate::guest) struct Share {
    limit: usize,
    /// Guests of the version that run, and cores that help them.
    busy: AtomicUsize,
}

/// A running guest.
pub(in crate::guest) struct OccupiedCore(Arc<IdleCores>, Arc<Share>);

/// Cores that help a guest.
struct Helpers<'a> {
    cores: &'a IdleCores,
    share: &'a Share,
    count: usize,
}

impl IdleCores {
    /// Start a thread for each core but the one on which a guest runs.
    pub(in crate::guest) fn new(cores: usize) -> Result<Self, ThreadPoolBuildError> {
        let helpers = cores.saturating_sub(1);
        let threads = (helpers > 0).then(|| {
            ThreadPoolBuilder::new()
                .num_threads(helpers)
                .thread_name(|index| format!("arithmetic-{index}"))
                .build()
        });
        Ok(Self { cores, busy: AtomicUsize::new(0), threads: threads.transpose()? })
    }

    /// A guest of the version runs on the calling thread until the result is dropped.
    pub(in crate::guest) fn occupy(self: &Arc<Self>, share: &Arc<Share>) -> OccupiedCore {
        self.busy.fetch_add(1, Ordering::Relaxed);
        share.busy.fetch_add(1, Ordering::Relaxed);
        OccupiedCore(Arc::clone(self), Arc::clone(share))
    }

    /// Compute the output of a call, on idle cores as well if it is large.
    ///
    /// # Errors
    /// [`Stopped`], soon after `is_stopped` has returned true on any of the threads.
    pub(super) fn execute(
        &self,
        share: &Share,
        call: &CheckedCall<'_>,
        (backend, output): (Backend, &mut [u8]),
        is_stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Stopped> {
        let helpers = if call.work() < MIN_WORK { None } else { self.find_helpers(share) };
        let (Some(threads), Some(helpers)) = (&self.threads, helpers) else {
            return call.execute(backend, output, &mut || is_stopped());
        };
        let parts = with_outputs(call.split((helpers.count + 1) * PARTS_PER_CORE), output);
        let parts = Mutex::new(parts.into_iter());
        let is_cut_off = AtomicBool::new(false);
        let compute = || {
            let is_stopped = || is_cut_off.load(Ordering::Relaxed) || is_stopped();
            loop {
                let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((part, output)) = next else { return };
                if is_stopped() || part.execute(backend, output, &mut || is_stopped()).is_err() {
                    is_cut_off.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        threads.in_place_scope(|scope| {
            (0..helpers.count).for_each(|_| scope.spawn(|_| compute()));
            compute();
        });
        if is_cut_off.into_inner() { Err(Stopped) } else { Ok(()) }
    }

    /// Take all idle cores that the version may use.
    fn find_helpers<'a>(&'a self, share: &'a Share) -> Option<Helpers<'a>> {
        let count = take(&share.busy, share.limit, usize::MAX);
        let found = take(&self.busy, self.cores, count);
        share.busy.fetch_sub(count - found, Ordering::Relaxed);
        (found > 0).then_some(Helpers { cores: self, share, count: found })
    }
}

impl Share {
    /// The share of a version that may occupy so many inference threads.
    pub(in crate::guest) fn new(limit: usize) -> Self {
        Self { limit, busy: AtomicUsize::new(0) }
    }
}

impl Drop for OccupiedCore {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.1.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.cores.busy.fetch_sub(self.count, Ordering::Relaxed);
        self.share.busy.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Raise a count towards its limit, by at most `most`. Returns by how much.
fn take(count: &AtomicUsize, limit: usize, most: usize) -> usize {
    let mut taken = 0;
    // The closure always returns a value.
    let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
        taken = limit.saturating_sub(count).min(most);
        Some(count + taken)
    });
    taken
}

/// The parts of a call, each with its part of the output.
fn with_outputs<'a, 'b>(
    parts: Vec<CheckedCall<'a>>,
    mut output: &'b mut [u8],
) -> Vec<(CheckedCall<'a>, &'b mut [u8])> {
    let with_output = |part: CheckedCall<'a>| {
        let (own, rest) = std::mem::take(&mut output).split_at_mut(part.output_bytes());
        output = rest;
        (part, own)
    };
    parts.into_iter().map(with_output).collect()
}

#[cfg(test)]
mod tests {
    use bytemuck::cast_slice_mut;
    use guesthouse_arithmetic::{MatrixProduct, Operands, Operation, RightOperand, Tail};

    use super::*;

    const SIZE: u32 = 160;

    fn product() -> Operation {
        let product = MatrixProduct {
            batch: [1, 1],
            size: [SIZE; 3],
            left: [0, 0, SIZE, 1],
            right: RightOperand::Strided([0, 0, SIZE, 1]),
            output: [0, 0, SIZE],
            scale: 1.0,
        };
        Operation::MatrixProduct(product, Tail::NONE)
    }

    fn numbers() -> Vec<f32> {
        (0..SIZE * SIZE).map(|index| f32::from((index * 7 % 13) as u16) - 6.5).collect()
    }

    #[test]
    fn idle_cores_compute_the_same_bits() {
        let (cores, share) = (Arc::new(IdleCores::new(3).unwrap()), Arc::new(Share::new(3)));
        let _guest = cores.occupy(&share);
        let (left, right) = (numbers(), numbers());
        let operands = Operands { first: &left, second: &right, ..Operands::default() };
        let call = CheckedCall::F32(product().check(operands).unwrap());
        assert!(call.work() >= MIN_WORK);
        let mut alone = vec![0.0_f32; call.output_len()];
        call.execute(Backend::fastest(), cast_slice_mut(&mut alone), &mut || false).unwrap();
        let mut together = vec![0.0_f32; call.output_len()];
        let output = (Backend::fastest(), cast_slice_mut(&mut together));
        cores.execute(&share, &call, output, &|| false).unwrap();
        assert_eq!(alone, together);
        assert_eq!(cores.busy.load(Ordering::Relaxed), 1, "the helpers were given back");
        assert_eq!(share.busy.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_stop_ends_the_parts_on_all_cores() {
        let (cores, share) = (IdleCores::new(2).unwrap(), Share::new(2));
        let (left, right) = (numbers(), numbers());
        let operands = Operands { first: &left, second: &right, ..Operands::default() };
        let call = CheckedCall::F32(product().check(operands).unwrap());
        let mut output = vec![0.0_f32; call.output_len()];
        let output = (Backend::fastest(), cast_slice_mut(&mut output));
        assert_eq!(cores.execute(&share, &call, output, &|| true), Err(Stopped));
        assert_eq!(cores.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_core_has_no_threads_and_computes_alone() {
        let (cores, share) = (IdleCores::new(1).unwrap(), Share::new(4));
        assert!(cores.threads.is_none());
        let (left, right) = (numbers(), numbers());
        let operands = Operands { first: &left, second: &right, ..Operands::default() };
        let call = CheckedCall::F32(product().check(operands).unwrap());
        let mut output = vec![0.0_f32; call.output_len()];
        let target = (Backend::fastest(), cast_slice_mut(&mut output));
        assert_eq!(cores.execute(&share, &call, target, &|| false), Ok(()));
        assert!(output.iter().any(|value| *value != 0.0));
    }

    #[test]
    fn helpers_exceed_neither_the_cores_nor_the_share() {
        let cores = Arc::new(IdleCores::new(4).unwrap());
        let (small, large) = (Arc::new(Share::new(2)), Arc::new(Share::new(8)));
        let _guest = cores.occupy(&small);
        let helpers = cores.find_helpers(&small).unwrap();
        assert_eq!(helpers.count, 1, "the share is two");
        assert!(cores.find_helpers(&small).is_none());
        let _other = cores.occupy(&large);
        let rest = cores.find_helpers(&large).unwrap();
        assert_eq!(rest.count, 1, "one of four cores is idle");
        assert!(cores.find_helpers(&large).is_none());
        drop((helpers, rest));
        assert_eq!(cores.find_helpers(&large).unwrap().count, 2);
    }
}
