//! How surprising an example was when it came in, in two bytes.

/// Nats in steps of 1/64, from 0 to 1023, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Score(u16);

impl Score {
    const STEPS_PER_NAT: f32 = 64.0;
    /// No score is known. Below every score.
    pub(crate) const NONE: Self = Self(0);

    /// The nearest step to `nats`; what is no number has no score.
    pub(crate) fn new(nats: f32) -> Self {
        if nats.is_nan() {
            return Self::NONE;
        }
        // A float cast saturates; adding half and cutting off rounds without std.
        let steps = (nats * Self::STEPS_PER_NAT + 0.5).clamp(0.0, f32::from(u16::MAX - 1));
        Self(steps as u16 + 1)
    }

    pub(crate) fn nats(self) -> Option<f32> {
        self.0.checked_sub(1).map(|steps| f32::from(steps) / Self::STEPS_PER_NAT)
    }

    /// As it is stored: 0 for none.
    pub(crate) fn to_stored(self) -> u16 {
        self.0
    }

    pub(crate) fn from_stored(stored: u16) -> Self {
        Self(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_kept_to_half_a_step_and_stays_in_range() {
        for nats in [0.0, 0.3, 2.7, 17.25, 1000.1] {
            let kept = Score::new(nats).nats().unwrap();
            assert!((kept - nats).abs() <= 0.5 / Score::STEPS_PER_NAT, "{nats} became {kept}");
        }
        assert_eq!(Score::new(-3.0).nats(), Some(0.0));
        assert_eq!(Score::new(f32::INFINITY).nats(), Some(65534.0 / 64.0));
        assert_eq!(Score::new(f32::NAN).nats(), None);
        assert!(Score::NONE < Score::new(0.0));
    }
}
