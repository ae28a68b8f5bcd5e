//! One question for all who ask at the same time.
//!
//! Who asks while a question is on its way does not get its answer, which may be older than the call,
//! but shares the next one with everybody else who came meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Answers that are shared.
#[derive(Debug)]
pub(super) struct Together<T> {
    /// Who has asked so far.
    asked: AtomicU64,
    turn: Mutex<Turn<T>>,
}

#[derive(Debug)]
struct Turn<T> {
    /// Everybody up to here is answered by this.
    answered: u64,
    answer: Option<T>,
}

impl<T> Default for Together<T> {
    fn default() -> Self {
        Self {
            asked: AtomicU64::new(0),
            turn: Mutex::new(Turn {
                answered: 0,
                answer: None,
            }),
        }
    }
}

impl<T: Clone> Together<T> {
    /// Returns the answer to a question that was put after the call. One that is dropped on its way is
    /// put again by the next who waits.
    pub(super) async fn ask<F: Future<Output = T>>(&self, question: impl FnOnce() -> F) -> T {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut turn = self.turn.lock().await;
        if let Some(answer) = turn.answer.as_ref().filter(|_| turn.answered >= ticket) {
            return answer.clone();
        }
        let until = self.asked.load(Ordering::SeqCst);
        let answer = question().await;
        turn.answered = until;
        turn.answer = Some(answer.clone());
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        sync::Arc,
        task::Poll,
    };

    use futures_util::{FutureExt as _, future::join_all};
    use pgcapture_actors::supervise::{TaskKind, spawn};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_thousand_who_ask_at_once_cost_two_questions() {
        let together = Arc::new(Together::default());
        let (count, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (together, count) = (Arc::clone(&together), Arc::clone(&count));
            let gate = Arc::clone(&gate);
            async move {
                together
                    .ask(|| async {
                        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire().await.unwrap().forget();
                        number
                    })
                    .await
            }
        };
        // The first is on its way when all others come.
        let mut first = Box::pin(ask());
        assert!(first.as_mut().now_or_never().is_none());
        let mut others = Box::pin(join_all((0..999).map(|_| ask())));
        poll_fn(|cx| {
            assert!(others.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let mut others = spawn(TaskKind::Tool, "others", others);
        gate.add_permits(1);
        assert_eq!(first.await, 1);
        gate.add_permits(1);
        // None of them gets the answer to a question that was older than its own.
        assert_eq!(others.join().await.unwrap(), vec![2; 999]);
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_question_that_is_dropped_is_put_again() {
        let together = Together::<u64>::default();
        let dropped = together.ask(pending);
        assert!(dropped.now_or_never().is_none());
        assert_eq!(together.ask(|| ready(7)).await, 7);
    }
}
