//! The audit record shows what was done to it.

use federation_api::audit::{Chain, ChainError, digest_of};
use federation_api::trust::v1::AuditEntry;

fn record(numbers: std::ops::Range<u64>) -> Vec<AuditEntry> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    for number in numbers {
        let previous = entries.last().map(digest_of).unwrap_or_default();
        let action = "member.joined".to_owned();
        entries.push(AuditEntry { number, action, previous, ..AuditEntry::default() });
    }
    entries
}

fn check(entries: &[AuditEntry]) -> Result<(), ChainError> {
    let mut chain = Chain::default();
    entries.iter().try_for_each(|entry| chain.follow(entry))
}

#[test]
fn a_whole_record_holds_from_wherever_it_is_read() {
    assert_eq!(check(&record(1..6)), Ok(()));
    assert_eq!(check(&record(1..6)[2..]), Ok(()));
}

#[test]
fn a_removed_or_changed_entry_shows() {
    let mut removed = record(1..6);
    removed.remove(2);
    assert_eq!(check(&removed), Err(ChainError::Gap { before: 2, found: 4 }));
    let mut changed = record(1..6);
    changed[2].who = "somebody else".to_owned();
    assert_eq!(check(&changed), Err(ChainError::Changed(4)));
    let mut renumbered = record(1..6);
    renumbered.remove(2);
    renumbered[2].number = 3;
    renumbered[3].number = 4;
    assert_eq!(check(&renumbered), Err(ChainError::Changed(3)));
}
