//! A text without its constants: the pieces that fingerprints and normalised texts are made of.
//!
//! Constants and parameters lose their values, a list of them in `IN (…)` or rows of them behind `VALUES` become one
//! piece, a sign that belongs to a constant goes with it, comments and semicolons at the ends vanish. The escape
//! character of a `U&"…" UESCAPE '…'` stays, because it decides which name is meant.

use super::keywords::{Category, Keyword};
use super::lexer::{LexOptions, Lexer, Token, TokenKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A token as it stands.
    Token(Token),
    Constant,
    Param(Token),
    /// `(…)` with nothing but constants and parameters, or several rows of them.
    List,
    Semicolon,
}

pub(crate) struct Shape<'a> {
    lexer: Lexer<'a>,
    prev: Option<Token>,
    /// A token found behind a semicolon, to be looked at next.
    held: Option<Token>,
    /// White space or a comment stood before the last piece.
    spaced: bool,
}

impl<'a> Shape<'a> {
    pub(crate) fn new(text: &'a [u8], options: LexOptions) -> Self {
        Self {
            lexer: Lexer::new(text, options),
            prev: None,
            held: None,
            spaced: false,
        }
    }

    /// Whether white space or a comment stood before the last piece.
    pub(crate) fn spaced(&self) -> bool {
        self.spaced
    }

    /// The next token that is neither white space nor a semicolon. If a semicolon stood between it and another one, the
    /// token is kept for later.
    fn significant(&mut self) -> Option<Token> {
        let mut semicolon = false;
        self.spaced = false;
        loop {
            let (token, spaced) = self.lexer.next_spaced()?;
            self.spaced |= spaced;
            if token.kind == TokenKind::Semicolon {
                semicolon = self.prev.is_some();
            } else if semicolon {
                self.held = Some(token);
                return None;
            } else {
                return Some(token);
            }
        }
    }

    fn is_word(&self, token: Option<Token>, word: &[u8]) -> bool {
        token.is_some_and(|token| {
            token.kind == TokenKind::Ident
                && token.end - token.start == word.len()
                && token.bytes(self.lexer.text()).eq_ignore_ascii_case(word)
        })
    }

    fn what(&mut self, token: Token) -> What {
        match token.kind {
            TokenKind::LeftParen => {
                let values = self.is_word(self.prev, b"values");
                if (values || self.is_word(self.prev, b"in")) && self.list(values) {
                    return What::List;
                }
                What::Token(token)
            }
            TokenKind::Param => What::Param(token),
            TokenKind::Operator if self.sign(token) => What::Constant,
            kind if kind.is_literal() => {
                if self.is_word(self.prev, b"uescape") {
                    What::Token(token)
                } else {
                    What::Constant
                }
            }
            _ => What::Token(token),
        }
    }

    /// Steps over the number whose sign `token` is, if it is one.
    fn sign(&mut self, token: Token) -> bool {
        if token.bytes(self.lexer.text()) != b"-" || self.ends_operand() {
            return false;
        }
        let mut ahead = self.lexer.clone();
        let Some(number) = ahead.next_significant() else {
            return false;
        };
        let found = number.kind == TokenKind::Number;
        if found {
            self.lexer = ahead;
        }
        found
    }

    /// Whether the token before may end an operand, so that a minus behind it subtracts.
    fn ends_operand(&self) -> bool {
        let Some(prev) = self.prev else { return false };
        match prev.kind {
            TokenKind::Ident => {}
            TokenKind::Operator
            | TokenKind::LeftParen
            | TokenKind::LeftBracket
            | TokenKind::Comma
            | TokenKind::Semicolon
            | TokenKind::Colon
            | TokenKind::ColonEquals => return false,
            _ => return true,
        }
        let Some(word) = Keyword::lookup(prev.bytes(self.lexer.text())) else {
            return true;
        };
        let value = matches!(
            word,
            Keyword::End
                | Keyword::Null
                | Keyword::True
                | Keyword::False
                | Keyword::CurrentDate
                | Keyword::CurrentTime
                | Keyword::CurrentTimestamp
                | Keyword::Localtime
                | Keyword::Localtimestamp
        );
        // Where grammar and not an expression follows, the sign stays: classification looks at the next token there.
        let grammar = matches!(
            word,
            Keyword::To | Keyword::From | Keyword::Analyze | Keyword::Analyse
        );
        let before_operand = word.category() == Category::R
            || matches!(word, Keyword::By | Keyword::Between | Keyword::Escape);
        value || grammar || !before_operand
    }

    /// Steps over a list of constants behind its opening parenthesis, and over further rows of VALUES.
    fn list(&mut self, rows: bool) -> bool {
        let mut ahead = self.lexer.clone();
        if !constants(&mut ahead) {
            return false;
        }
        self.lexer = ahead.clone();
        while rows
            && next_is(&mut ahead, TokenKind::Comma)
            && next_is(&mut ahead, TokenKind::LeftParen)
            && constants(&mut ahead)
        {
            self.lexer = ahead.clone();
        }
        true
    }
}

fn next_is(lexer: &mut Lexer<'_>, kind: TokenKind) -> bool {
    lexer
        .next_significant()
        .is_some_and(|token| token.kind == kind)
}

/// Whether nothing but constants comes up to the closing parenthesis.
fn constants(lexer: &mut Lexer<'_>) -> bool {
    let text = lexer.text();
    loop {
        let Some(mut token) = lexer.next_significant() else {
            return false;
        };
        if token.kind == TokenKind::Operator && token.bytes(text) == b"-" {
            match lexer.next_significant() {
                Some(number) if number.kind == TokenKind::Number => token = number,
                _ => return false,
            }
        }
        let constant = match token.kind {
            TokenKind::Param => true,
            TokenKind::Ident => [&b"null"[..], b"true", b"false", b"default"]
                .iter()
                .any(|word| token.bytes(text).eq_ignore_ascii_case(word)),
            kind => kind.is_literal(),
        };
        if !constant {
            return false;
        }
        match lexer.next_significant().map(|token| token.kind) {
            Some(TokenKind::Comma) => {}
            Some(TokenKind::RightParen) => return true,
            _ => return false,
        }
    }
}

impl Iterator for Shape<'_> {
    type Item = What;

    fn next(&mut self) -> Option<What> {
        let token = if let Some(held) = self.held.take() {
            self.spaced = true;
            held
        } else if let Some(token) = self.significant() {
            token
        } else {
            self.held?;
            self.prev = None;
            self.spaced = false;
            return Some(What::Semicolon);
        };
        let what = self.what(token);
        // What a piece ends in is all that counts: a list in a parenthesis, a signed number in a number.
        let kind = match what {
            What::List => TokenKind::RightParen,
            What::Constant => TokenKind::Number,
            _ => token.kind,
        };
        self.prev = Some(Token { kind, ..token });
        Some(what)
    }
}
