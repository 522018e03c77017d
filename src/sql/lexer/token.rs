//! Tokens: kinds and places in a text.

use std::ops::Range;

/// What a token is.
///
/// As wide as a token's other fields: padding in a [`Token`] is copied in pieces that the processor then has to put
/// together again, which made a fingerprint three times as slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum TokenKind {
    Whitespace,
    /// `-- …`, without its newline.
    LineComment,
    /// `/* … */`, nested ones inside it.
    BlockComment,
    /// An unquoted identifier or keyword.
    Ident,
    /// `"…"`
    QuotedIdent,
    /// `U&"…"`
    UnicodeIdent,
    /// `'…'` with `standard_conforming_strings` on.
    String,
    /// `E'…'`, or `'…'` with `standard_conforming_strings` off.
    EscapeString,
    /// `N'…'`
    NationalString,
    /// `U&'…'`
    UnicodeString,
    /// `B'…'`
    BitString,
    /// `X'…'`
    HexString,
    /// `$tag$…$tag$`
    DollarString,
    Number,
    /// `$1`
    Param,
    Operator,
    /// `::`
    Typecast,
    /// `:=`
    ColonEquals,
    /// `..`
    DotDot,
    LeftParen,
    RightParen,
    LeftBracket,
    RightBracket,
    Comma,
    Semicolon,
    Dot,
    Colon,
    /// Unterminated, or a byte no token starts with.
    Error,
    /// Behind the last token. Never yielded by `Lexer`; cursors that look ahead use it.
    End,
}

impl TokenKind {
    /// White space and comments.
    pub fn is_trivia(self) -> bool {
        matches!(
            self,
            Self::Whitespace | Self::LineComment | Self::BlockComment
        )
    }

    /// A string constant of any spelling.
    pub fn is_string(self) -> bool {
        matches!(
            self,
            Self::String
                | Self::EscapeString
                | Self::NationalString
                | Self::UnicodeString
                | Self::BitString
                | Self::HexString
                | Self::DollarString
        )
    }

    /// A constant as the server's scanner makes them: strings and numbers.
    pub fn is_literal(self) -> bool {
        self == Self::Number || self.is_string()
    }

    /// A constant or a parameter. Fingerprints don't tell them apart, so classification must not either.
    pub fn is_constant(self) -> bool {
        self == Self::Param || self.is_literal()
    }

    /// An identifier, quoted or not.
    pub fn is_name(self) -> bool {
        matches!(self, Self::Ident | Self::QuotedIdent | Self::UnicodeIdent)
    }
}

/// A token and where it is in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: TokenKind,
    pub start: usize,
    pub end: usize,
}

impl Token {
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }

    /// The token's bytes; empty if `text` is not the text it came from.
    pub fn bytes(self, text: &[u8]) -> &[u8] {
        text.get(self.range()).unwrap_or_default()
    }
}
