//! A text as significant tokens with keywords looked up, three tokens of look-ahead and two of look-back.

use crate::sql::keywords::{Category, Keyword};
use crate::sql::lexer::{LexOptions, Lexer, Token, TokenKind};
use crate::sql::name::Name;

/// A token and the keyword it is, if unquoted and one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tok {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) word: Option<Keyword>,
    /// The escape character of a `U&` token. Wider than it needs to be, so that there is no padding (see `TokenKind`).
    escape: u32,
}

impl Tok {
    fn end_at(at: usize) -> Self {
        Self {
            kind: TokenKind::End,
            start: at,
            end: at,
            word: None,
            escape: u32::from(b'\\'),
        }
    }

    pub(super) fn is(self, word: Keyword) -> bool {
        self.word == Some(word)
    }

    pub(super) fn is_any(self, words: &[Keyword]) -> bool {
        self.word.is_some_and(|word| words.contains(&word))
    }

    /// Whether it can name a column or a table.
    pub(super) fn is_column_id(self) -> bool {
        self.kind.is_name()
            && self
                .word
                .is_none_or(|word| matches!(word.category(), Category::U | Category::C))
    }

    /// Whether it can end an operand: what follows is then no operand, but an operator or the end of the expression.
    pub(super) fn ends_operand(self) -> bool {
        self.kind.is_constant()
            || matches!(self.kind, TokenKind::RightParen | TokenKind::RightBracket)
            || (self.kind.is_name() && self.word.is_none())
    }

    pub(super) fn ends_statement(self) -> bool {
        matches!(self.kind, TokenKind::Semicolon | TokenKind::End)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    lexer: Lexer<'a>,
    /// A ring: the two tokens before the current one, it, and three to come.
    ring: [Tok; RING],
    /// Counts tokens; the current one is at this place modulo the size of the ring.
    place: usize,
}

const RING: usize = 8;

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8], options: LexOptions) -> Self {
        let mut cursor = Self {
            lexer: Lexer::new(text, options),
            ring: [Tok::end_at(0); RING],
            place: 0,
        };
        for ahead in 0..4 {
            cursor.ring[ahead] = cursor.read();
        }
        cursor
    }

    /// The token `offset` places behind the one before the last.
    fn look(&self, offset: usize) -> Tok {
        self.ring[self.place.wrapping_add(offset).wrapping_sub(2) % RING]
    }

    pub(super) fn prev2(&self) -> Tok {
        self.look(0)
    }

    pub(super) fn prev(&self) -> Tok {
        self.look(1)
    }

    pub(super) fn text(&self) -> &'a [u8] {
        self.lexer.text()
    }

    pub(super) fn cur(&self) -> Tok {
        self.look(2)
    }

    pub(super) fn next(&self) -> Tok {
        self.look(3)
    }

    pub(super) fn next2(&self) -> Tok {
        self.look(4)
    }

    pub(super) fn advance(&mut self) {
        let tok = self.read();
        self.ring[self.place.wrapping_add(4) % RING] = tok;
        self.place = self.place.wrapping_add(1);
    }

    pub(super) fn skip(&mut self, tokens: usize) {
        for _ in 0..tokens {
            self.advance();
        }
    }

    /// Steps over `word` if it is the current token.
    pub(super) fn eat(&mut self, word: Keyword) -> bool {
        let eaten = self.cur().is(word);
        if eaten {
            self.advance();
        }
        eaten
    }

    /// Steps over the words if all of them come next; at most four.
    pub(super) fn eat_all(&mut self, words: &[Keyword]) -> bool {
        let all = words.len() <= 4
            && words
                .iter()
                .enumerate()
                .all(|(ahead, &word)| self.look(2 + ahead).is(word));
        if all {
            self.skip(words.len());
        }
        all
    }

    pub(super) fn at(&self, kind: TokenKind) -> bool {
        self.cur().kind == kind
    }

    pub(super) fn at_end(&self) -> bool {
        self.cur().ends_statement()
    }

    pub(super) fn bytes(&self, tok: Tok) -> &'a [u8] {
        self.lexer
            .text()
            .get(tok.start..tok.end)
            .unwrap_or_default()
    }

    /// The name a token stands for.
    pub(super) fn name(&self, tok: Tok) -> Name {
        let escape = u8::try_from(tok.escape).unwrap_or(b'\\');
        Name::of_token(tok.kind, self.bytes(tok), escape)
    }

    /// Steps over the current token if it can be a name (keywords may) and says which.
    pub(super) fn eat_name(&mut self) -> Option<Name> {
        let tok = self.cur();
        tok.kind.is_name().then(|| {
            self.advance();
            self.name(tok)
        })
    }

    /// With a name as the current token: moves to the last name of a dotted chain, and gives the one before it.
    pub(super) fn chain(&mut self) -> Option<Tok> {
        let mut schema = None;
        while self.next().kind == TokenKind::Dot && self.next2().kind.is_name() {
            schema = Some(self.cur());
            self.skip(2);
        }
        schema
    }

    /// Steps over a dotted chain of names, if there is one, and gives its last two.
    pub(super) fn eat_qualified(&mut self) -> Option<(Option<Name>, Name)> {
        if !self.cur().kind.is_name() {
            return None;
        }
        let schema = self.chain().map(|tok| self.name(tok));
        let name = self.name(self.cur());
        self.advance();
        Some((schema, name))
    }

    /// Pretends that the token before was a comma.
    pub(super) fn forget_prev(&mut self) {
        let prev = &mut self.ring[self.place.wrapping_sub(1) % RING];
        prev.kind = TokenKind::Comma;
        prev.word = None;
    }

    fn read(&mut self) -> Tok {
        let Some(token) = self.lexer.next_significant() else {
            return Tok::end_at(self.lexer.text().len());
        };
        let word = match token.kind {
            TokenKind::Ident => Keyword::lookup(token.bytes(self.lexer.text())),
            _ => None,
        };
        let unicode = matches!(
            token.kind,
            TokenKind::UnicodeIdent | TokenKind::UnicodeString
        );
        Tok {
            kind: token.kind,
            start: token.start,
            end: token.end,
            word,
            escape: u32::from(if unicode { self.uescape() } else { b'\\' }),
        }
    }

    /// Steps over a `UESCAPE '…'` and gives its character.
    fn uescape(&mut self) -> u8 {
        let text = self.lexer.text();
        let mut ahead = self.lexer.clone();
        let is_uescape = |token: &Token| {
            token.kind == TokenKind::Ident
                && Keyword::lookup(token.bytes(text)) == Some(Keyword::Uescape)
        };
        if ahead.next_significant().as_ref().is_some_and(is_uescape)
            && let Some(constant) = ahead.next_significant()
            && constant.kind.is_string()
        {
            self.lexer = ahead;
            // The character before the closing quote; a doubled quote can't be an escape character.
            let bytes = constant.bytes(text);
            return bytes.iter().rev().nth(1).copied().unwrap_or(b'\\');
        }
        b'\\'
    }
}
