//! Which rows of the merged stream belong to the answer: OFFSET, LIMIT, and how many the portal may give for now.

/// Counts rows as they come up.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Rows still to be left out.
    skip: u64,
    /// Rows that may still be given.
    left: Option<u64>,
    /// Rows that may be given before a pause.
    pub(super) quota: Option<u64>,
    /// Rows given.
    pub(super) rows: u64,
}

impl Due {
    pub(super) fn new(offset: u64, limit: Option<u64>) -> Self {
        Self { skip: offset, left: limit, quota: None, rows: 0 }
    }

    /// Counts a row; whether it belongs to the answer.
    pub(super) fn counts(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.left {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        self.rows += 1;
        self.quota = self.quota.map(|quota| quota.saturating_sub(1));
        true
    }

    /// Counts rows that all belong to the answer; false, and nothing counted, if one of them might not, or a pause is due within.
    pub(super) fn count_all(&mut self, rows: usize) -> bool {
        let is_all = self.skip == 0 && self.left.is_none() && self.quota.is_none();
        self.rows += if is_all { rows as u64 } else { 0 };
        is_all
    }

    /// Whether as many rows were given as may be for now.
    pub(super) fn is_paused(&self) -> bool {
        self.quota == Some(0)
    }
}
