//! A label's value that users chose: escaped, which prometheus-client leaves to its caller.

use std::fmt::{self, Write};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// A name of a database, user or server as a label's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabelText(Box<str>);

impl<T: Into<Box<str>>> From<T> for LabelText {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl EncodeLabelValue for LabelText {
    /// `\`, `"` and newline are escaped (OpenMetrics 1.0, ABNF of `escaped-char`).
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), fmt::Error> {
        for c in self.0.chars() {
            match c {
                '\\' => encoder.write_str("\\\\")?,
                '"' => encoder.write_str("\\\"")?,
                '\n' => encoder.write_str("\\n")?,
                c => encoder.write_char(c)?,
            }
        }
        Ok(())
    }
}
