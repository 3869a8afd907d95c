//! A pick allocates nothing: not for a first attempt, a sticky one or a retry, nor when the assessment is renewed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::{Duration, Instant},
};

use balance::{Balancer, Group, Member, Outcome, PickContext, Plan, Reach, Settings};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "counting allocations needs an allocator; it only forwards to the system's")]
// SAFETY: every call is forwarded unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_pick_allocates_nothing() {
    let mut now = Instant::now();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let mut balancer: Balancer<u32> = Balancer::new(Settings::default(), 1);
    let groups = (0..4).map(|group| Group {
        priority: group / 2,
        name: format!("zone-{group}").into(),
        reach: Reach::Endpoints,
        capacity_total: 5,
        capacity_ready: 5,
        share: None,
        suspect: group == 3,
        members: (0..5).map(|member| Member::endpoint(group * 5 + member)).collect(),
    });
    balancer.update(Plan { groups: groups.collect() }, now);
    let mut picked = 0;
    for round in 0..2_000_u32 {
        now += Duration::from_millis(10);
        let exclude = [round % 20];
        let context = PickContext {
            exclude: if round % 3 == 0 { &exclude } else { &[] },
            avoid_gateways: round % 2 == 0,
            affinity: (round % 5 == 0).then_some(u64::from(round)),
        };
        let before = ALLOCATIONS.get();
        let pick = balancer.pick(now, &mut rng, &context).unwrap();
        balancer.started(&pick.member);
        assert_eq!(ALLOCATIONS.get(), before, "round {round}");
        let outcome = if pick.member < 4 && round < 1_000 { Outcome::ConnectFailure } else { Outcome::Success };
        balancer.finished(&pick.member, outcome, None, Duration::from_millis(3), now);
        picked += 1;
    }
    assert_eq!(picked, 2_000);
    assert!(balancer.counters().member_ejections > 0, "the assessment changed in between");
}
