//! Which parameters a text uses.

use super::lexer::{Lexer, TokenKind};

/// How often the text uses each of its first `count` parameters.
pub fn uses(text: &[u8], count: usize, standard_conforming_strings: bool) -> Vec<usize> {
    let mut uses = vec![0; count];
    for token in Lexer::new(text, standard_conforming_strings).significant() {
        let number = token.bytes(text).strip_prefix(b"$").filter(|_| token.kind == TokenKind::Parameter);
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        if let Some(uses) = number.and_then(|number| uses.get_mut(number.wrapping_sub(1))) {
            *uses += 1;
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_count() {
        let text = b"select $2, '$1', $$1$$, $2::int4 /* $3 */ from t where a = $4 and b = $9 or c = $0";
        assert_eq!(uses(text, 4, true), [0, 2, 0, 1]);
        assert_eq!(uses(b"", 1, true), [0]);
    }
}
