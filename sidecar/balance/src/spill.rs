//! How load spills from a priority to the next.
//!
//! The formulas are those of Envoy's priority load: the health of a priority is its healthy share times an
//! overprovisioning factor, capped at 100 %; each priority takes what it can bear of what those before it left, and when
//! all together can bear less than 100 %, what they can bear is scaled up.
//! See *Priority levels* and *Overprovisioning factor* under
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority>.

/// The health of a priority, h = min(1, f · healthy / total): the share of all load it can bear. 0 without capacity.
pub fn health(overprovisioning: f64, healthy: f64, total: f64) -> f64 {
    if total > 0.0 { (overprovisioning * healthy / total).clamp(0.0, 1.0) } else { 0.0 }
}

/// The load of each priority, first to last, from their healths: with T = min(1, Σh), load₀ = min(1, h₀ / T) and
/// loadₖ = min(1 − Σ before, hₖ / T).
///
/// The loads sum to one, or are all zero when every health is: that is panic, and the caller's to decide.
pub fn loads<'a>(healths: impl IntoIterator<Item = &'a f64> + Clone) -> impl Iterator<Item = f64> {
    let bearable = bearable(healths.clone());
    let mut left = 1.0_f64;
    healths.into_iter().map(move |health| {
        let load = take(*health, bearable, left);
        left -= load;
        load
    })
}

/// T = min(1, Σh).
pub(crate) fn bearable<'a>(healths: impl IntoIterator<Item = &'a f64>) -> f64 {
    healths.into_iter().sum::<f64>().min(1.0)
}

/// What a priority of this health takes of the load that those before it left.
pub(crate) fn take(health: f64, bearable: f64, left: f64) -> f64 {
    if bearable > 0.0 { (health / bearable).min(left).max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{health, loads};

    /// (healthy, total) of each priority, and the loads in percent that f = 1.4 gives.
    type Row<'a> = (&'a str, &'a [(f64, f64)], &'a [f64]);

    const TABLE: &[Row<'_>] = &[
        ("first half healthy, second fully", &[(5.0, 10.0), (10.0, 10.0)], &[70.0, 30.0]),
        ("a quarter, a quarter, all", &[(1.0, 4.0), (1.0, 4.0), (4.0, 4.0)], &[35.0, 35.0, 30.0]),
        ("two priorities at a quarter only", &[(1.0, 4.0), (1.0, 4.0)], &[50.0, 50.0]),
        ("all healthy", &[(3.0, 3.0), (3.0, 3.0)], &[100.0, 0.0]),
        ("just enough left to keep everything", &[(72.0, 100.0), (100.0, 100.0)], &[100.0, 0.0]),
        ("a little less than enough", &[(71.0, 100.0), (100.0, 100.0)], &[99.4, 0.6]),
        ("first gone", &[(0.0, 5.0), (5.0, 5.0)], &[0.0, 100.0]),
        ("first without any capacity", &[(0.0, 0.0), (5.0, 5.0)], &[0.0, 100.0]),
        ("only the first, hardly healthy", &[(1.0, 100.0), (0.0, 10.0)], &[100.0, 0.0]),
        ("a quarter and half", &[(25.0, 100.0), (25.0, 100.0), (10.0, 100.0)], &[41.666, 41.666, 16.666]),
        ("nothing healthy", &[(0.0, 5.0), (0.0, 5.0)], &[0.0, 0.0]),
    ];

    #[test]
    fn loads_follow_the_worked_examples() {
        for (name, priorities, expected) in TABLE {
            let healths: Vec<f64> = priorities.iter().map(|&(healthy, total)| health(1.4, healthy, total)).collect();
            let loads: Vec<f64> = loads(&healths).map(|load| load * 100.0).collect();
            assert_eq!(loads.len(), expected.len(), "{name}");
            for (load, expected) in loads.iter().zip(*expected) {
                assert!((load - expected).abs() < 0.01, "{name}: {loads:?} instead of {expected:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn loads_sum_to_one_and_never_exceed_what_a_priority_bears(healths in prop::collection::vec(0.0..=1.0_f64, 0..8)) {
            let loads: Vec<f64> = loads(&healths).collect();
            let sum: f64 = loads.iter().sum();
            let borne: f64 = healths.iter().sum();
            prop_assert!((sum - if borne > 0.0 { 1.0 } else { 0.0 }).abs() < 1e-9, "{sum}");
            for (load, health) in loads.iter().zip(&healths) {
                prop_assert!(*load >= 0.0);
                prop_assert!(*load <= health / borne.min(1.0) + 1e-9, "{loads:?} of {healths:?}");
            }
        }

        #[test]
        fn a_priority_gets_nothing_while_those_before_it_bear_everything(
            first in prop::collection::vec(0.5..=1.0_f64, 2..4), rest in prop::collection::vec(0.0..=1.0_f64, 1..4),
        ) {
            let all: Vec<f64> = first.iter().chain(&rest).copied().collect();
            let later: f64 = loads(&all).skip(first.len()).sum();
            prop_assert!(later < 1e-9, "{later}");
        }
    }
}
