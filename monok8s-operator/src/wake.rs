//! What wakes the planner: any change, but a burst of changes only once.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Rings when something that the planner looks at has changed.
#[derive(Clone, Debug)]
pub struct Bell(watch::Sender<()>);

/// Hears the bell.
#[derive(Debug)]
pub struct Ear(watch::Receiver<()>);

/// How long a burst must be quiet, and how long it may go on.
#[derive(Clone, Copy, Debug)]
pub struct Debounce {
    /// A burst has ended after this long without a ring.
    pub quiet: Duration,
    /// A burst is cut off after this long, however noisy it still is.
    pub longest: Duration,
}

impl Default for Debounce {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), longest: Duration::from_secs(1) }
    }
}

/// A bell and the one ear that hears it.
#[must_use]
pub fn bell() -> (Bell, Ear) {
    let (sender, receiver) = watch::channel(());
    (Bell(sender), Ear(receiver))
}

impl Bell {
    /// Rings. Never waits; rings that nobody has heard yet are one ring.
    pub fn ring(&self) {
        self.0.send_replace(());
    }
}

impl Ear {
    /// Waits for a ring, at most until `latest`, and then for the end of the burst.
    pub async fn listen(&mut self, latest: Instant, debounce: Debounce) {
        if timeout_at(latest, self.0.changed()).await.is_err() {
            return;
        }
        let end = Instant::now() + debounce.longest;
        while Instant::now() < end {
            let quiet = (Instant::now() + debounce.quiet).min(end);
            match timeout_at(quiet, self.0.changed()).await {
                Ok(Ok(())) => {}
                // Quiet; or every bell is gone, which ends with the process.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBOUNCE: Debounce =
        Debounce { quiet: Duration::from_millis(100), longest: Duration::from_secs(1) };

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_latest_time() {
        let (_bell, mut ear) = bell();
        let start = Instant::now();
        ear.listen(start + Duration::from_secs(7), DEBOUNCE).await;
        assert_eq!(start.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn one_ring_is_heard_after_a_quiet_time() {
        let (bell, mut ear) = bell();
        bell.ring();
        let start = Instant::now();
        ear.listen(start + Duration::from_secs(7), DEBOUNCE).await;
        assert_eq!(start.elapsed(), Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn noise_without_end_is_cut_off() {
        let (bell, mut ear) = bell();
        let noise = tokio::spawn(async move {
            loop {
                bell.ring();
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let start = Instant::now();
        ear.listen(start + Duration::from_secs(7), DEBOUNCE).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        noise.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_during_the_pass_is_not_lost() {
        let (bell, mut ear) = bell();
        let far = Instant::now() + Duration::from_secs(60);
        bell.ring();
        ear.listen(far, DEBOUNCE).await;
        bell.ring();
        let start = Instant::now();
        ear.listen(far, DEBOUNCE).await;
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}
