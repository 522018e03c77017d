//! SQL's `LIKE`.

/// Whether `text` fits `pattern`, in which `%` stands for any text and `_` for any character. Time: at most the product of the two lengths.
pub fn like(text: &str, pattern: &str, any_case: bool) -> bool {
    let fold = |text: &str| -> Vec<char> {
        if any_case {
            text.to_lowercase().chars().collect()
        } else {
            text.chars().collect()
        }
    };
    let text = fold(text);
    let pattern = pieces(&fold(pattern));
    let (mut at, mut piece) = (0, 0);
    // Where to go on if what follows the last `%` does not fit here.
    let mut again: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(piece) {
            Some(Piece::Any) => {
                again = Some((at, piece));
                piece += 1;
                continue;
            }
            Some(Piece::One) => {
                at += 1;
                piece += 1;
                continue;
            }
            Some(Piece::Char(c)) if *c == text[at] => {
                at += 1;
                piece += 1;
                continue;
            }
            _ => {}
        }
        let Some((from, any)) = again else {
            return false;
        };
        again = Some((from + 1, any));
        at = from + 1;
        piece = any + 1;
    }
    pattern[piece..].iter().all(|piece| *piece == Piece::Any)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Char(char),
    One,
    Any,
}

fn pieces(pattern: &[char]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(pattern.len());
    let mut characters = pattern.iter().copied();
    while let Some(c) = characters.next() {
        pieces.push(match c {
            '%' => Piece::Any,
            '_' => Piece::One,
            '\\' => Piece::Char(characters.next().unwrap_or('\\')),
            c => Piece::Char(c),
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pattern_of_wildcards_fits_what_a_search_would_find(text in "[ab]{0,12}", middle in "[ab]{0,3}") {
            prop_assert_eq!(like(&text, &format!("%{middle}%"), false), text.contains(&middle));
            prop_assert_eq!(like(&text, &format!("{middle}%"), false), text.starts_with(&middle));
        }
    }
}
