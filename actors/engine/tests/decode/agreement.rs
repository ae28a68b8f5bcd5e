//! The one-pass encoder and prost agree, and no cut of the stream changes what the log holds.

use pgcapture_engine::{
    batch::Batch,
    checkpoint::Checkpoint,
    decoder::{Decoder, DecoderOptions},
    lsn::Lsn,
};
use pgcapture_proto::pgcapture::Message;
use proptest::{prelude::*, sample::Index};
use prost::Message as _;

use crate::model::history;

const OPTIONS: DecoderOptions = DecoderOptions {
    row_bytes_max: 1 << 20,
};

/// Decodes everything, taking a batch after every `batch_every` messages.
fn decode(decoder: &mut Decoder, messages: &[Vec<u8>], batch_every: usize) -> Vec<Batch> {
    let mut batches = Vec::new();
    for (place, message) in messages.iter().enumerate() {
        decoder.decode(message).unwrap();
        if place % batch_every == 0 || decoder.is_full() {
            batches.extend(decoder.take());
        }
    }
    batches.extend(decoder.take());
    batches
}

/// Checkpoints and payloads in order.
fn entries(batches: &[Batch]) -> Vec<(Checkpoint, Vec<u8>)> {
    let entry =
        |entry: pgcapture_engine::batch::Entry<'_>| (entry.checkpoint, entry.payload.to_vec());
    batches
        .iter()
        .flat_map(Batch::iter)
        .map(|each| entry(each.unwrap()))
        .collect()
}

proptest! {
    #[test]
    fn the_logs_bytes_are_those_that_prost_writes(history in history(), batch_every in 1_usize..20) {
        let views = history.play();
        let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
        let decoded = entries(&decode(&mut decoder, &views.messages, batch_every));
        prop_assert_eq!(decoded.len(), views.entries.len());
        for ((checkpoint, payload), (expected_checkpoint, expected)) in decoded.iter().zip(&views.entries) {
            prop_assert_eq!(checkpoint, expected_checkpoint);
            prop_assert_eq!(&Message::decode(&payload[..]).unwrap(), expected);
            prop_assert_eq!(payload, &expected.encode_to_vec(), "the same bytes, too");
        }
    }

    #[test]
    fn after_any_tail_exactly_the_rest_is_decoded(history in history(), cut in any::<Index>(), batch_every in 1_usize..20) {
        let views = history.play();
        let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
        let all = entries(&decode(&mut decoder, &views.messages, 5));
        prop_assume!(!all.is_empty());
        let cut = cut.index(all.len());
        let mut decoder = Decoder::new(OPTIONS, Some(all[cut].0), Lsn::ZERO);
        let rest = entries(&decode(&mut decoder, &views.messages, batch_every));
        prop_assert_eq!(&rest[..], &all[cut + 1..]);
        prop_assert_eq!(decoder.counters().dropped_count, cut as u64 + 1);
    }

    #[test]
    fn a_connection_cut_anywhere_loses_and_repeats_nothing(history in history(), cut in any::<Index>(), batch_every in 1_usize..20) {
        let views = history.play();
        let whole = entries(&decode(&mut Decoder::new(OPTIONS, None, Lsn::ZERO), &views.messages, 5));
        let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
        let cut = cut.index(views.messages.len());
        let mut batches = decode(&mut decoder, &views.messages[..cut], batch_every);
        decoder.restart_stream();
        batches.extend(decode(&mut decoder, &views.messages, batch_every));
        prop_assert_eq!(entries(&batches), whole);
        let resumes: Vec<_> = batches.iter().map(|batch| batch.resume_lsn).collect();
        prop_assert!(resumes.is_sorted(), "{:?}", resumes);
    }

    #[test]
    fn damaged_messages_end_in_an_error_or_in_whole_entries(
        history in history(),
        place in any::<Index>(),
        byte in any::<Index>(),
        replacement in any::<u8>(),
    ) {
        let mut messages = history.play().messages;
        let place = place.index(messages.len());
        let byte = byte.index(messages[place].len());
        messages[place][byte] = replacement;
        let mut decoder = Decoder::new(OPTIONS, None, Lsn::ZERO);
        let _first_error = messages.iter().try_for_each(|message| decoder.decode(message));
        for entry in decoder.take().iter().flat_map(Batch::iter) {
            prop_assert!(Message::decode(entry.unwrap().payload).is_ok());
        }
    }
}
