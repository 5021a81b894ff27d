// SPDX-License-Identifier: Apache-2.0
//! GRUB's script, cut into words (GRUB manual, "Shell-like scripting": quoting and variables).

use std::iter::Peekable;
use std::str::Chars;

/// A word, not expanded yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Word(pub(super) Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    /// Text in quotes: never a reserved word, and there even if empty.
    Quoted(String),
    /// Split at blanks when expanded.
    Variable(String),
    /// Not split.
    QuotedVariable(String),
}

impl Word {
    /// The word, if it has neither quotes nor variables.
    pub(super) fn plain(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// A line's end or a semicolon.
    End,
    Open,
    Close,
}

/// What cannot be read, and the line.
pub(super) type SyntaxError = (usize, String);

/// The tokens of a script with the lines they begin in.
pub(super) fn lex(text: &str) -> Result<Vec<(usize, Token)>, SyntaxError> {
    let mut lexer = Lexer {
        rest: text.chars().peekable(),
        line: 1,
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.token()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn token(&mut self) -> Result<Option<(usize, Token)>, SyntaxError> {
        while let Some(next) = self.rest.peek().copied() {
            let line = self.line;
            let token = match next {
                ' ' | '\t' | '\r' => {
                    self.next();
                    continue;
                }
                '#' => {
                    while self.rest.next_if(|next| *next != '\n').is_some() {}
                    continue;
                }
                '\n' | ';' => self.take(Token::End),
                '{' => self.take(Token::Open),
                '}' => self.take(Token::Close),
                _ => {
                    let word = self.word()?;
                    if word.0.is_empty() {
                        // A backslash at a line's end.
                        continue;
                    }
                    Token::Word(word)
                }
            };
            return Ok(Some((line, token)));
        }
        Ok(None)
    }

    fn take(&mut self, token: Token) -> Token {
        self.next();
        token
    }

    fn word(&mut self) -> Result<Word, SyntaxError> {
        let mut word = Word::default();
        while let Some(next) = self.rest.peek().copied() {
            match next {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' => break,
                '\'' => word.0.push(Part::Quoted(self.single_quoted()?)),
                '"' => self.double_quoted(&mut word)?,
                '$' => {
                    self.next();
                    match variable(&mut self.rest) {
                        Some(name) => word.0.push(Part::Variable(name)),
                        None => text(&mut word, '$'),
                    }
                }
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') | None => {}
                        Some(escaped) => word.0.push(Part::Quoted(escaped.into())),
                    }
                }
                _ => {
                    self.next();
                    text(&mut word, next);
                }
            }
        }
        Ok(word)
    }

    fn single_quoted(&mut self) -> Result<String, SyntaxError> {
        let line = self.line;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('\'') => return Ok(text),
                Some(next) => text.push(next),
                None => return Err((line, "a quotation mark without its end".into())),
            }
        }
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), SyntaxError> {
        let line = self.line;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => break,
                Some('$') => match variable(&mut self.rest) {
                    Some(name) => {
                        word.0.push(Part::Quoted(std::mem::take(&mut text)));
                        word.0.push(Part::QuotedVariable(name));
                    }
                    None => text.push('$'),
                },
                Some('\\') => match self.next() {
                    Some('\n') | None => {}
                    Some(escaped @ ('"' | '\\' | '$')) => text.push(escaped),
                    Some(other) => text.extend(['\\', other]),
                },
                Some(next) => text.push(next),
                None => return Err((line, "a quotation mark without its end".into())),
            }
        }
        word.0.push(Part::Quoted(text));
        Ok(())
    }
}

fn text(word: &mut Word, next: char) {
    if let Some(Part::Text(text)) = word.0.last_mut() {
        text.push(next);
    } else {
        word.0.push(Part::Text(next.into()));
    }
}

/// The name after a dollar sign; none if that stands for itself.
fn variable(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let first = rest.peek().copied()?;
    if first == '{' {
        let mut ahead = rest.clone();
        ahead.next();
        let name: String = ahead
            .by_ref()
            .take_while(|next| *next != '}')
            .take(256)
            .collect();
        let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic());
        if !valid || name.len() == 256 {
            return None;
        }
        *rest = ahead;
        return Some(name);
    }
    if "?@*#".contains(first) || first.is_ascii_digit() {
        rest.next();
        return Some(first.into());
    }
    let mut name = String::new();
    while let Some(next) = rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '_') {
        name.push(next);
    }
    (!name.is_empty()).then_some(name)
}

/// A text in which only variables are special.
pub(super) fn expand(text: &str, value: impl Fn(&str) -> String) -> String {
    let mut rest = text.chars().peekable();
    let mut expanded = String::new();
    while let Some(next) = rest.next() {
        match (next, (next == '$').then(|| variable(&mut rest)).flatten()) {
            (_, Some(name)) => expanded.push_str(&value(&name)),
            (next, None) => expanded.push(next),
        }
    }
    expanded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<Word> {
        lex(text)
            .unwrap()
            .into_iter()
            .filter_map(|(_, token)| match token {
                Token::Word(word) => Some(word),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn quotes_and_variables() {
        assert_eq!(
            words(r#"a'b c'"d $e ${f}" $g\ h # no"#),
            [
                Word(vec![
                    Part::Text("a".into()),
                    Part::Quoted("b c".into()),
                    Part::Quoted("d ".into()),
                    Part::QuotedVariable("e".into()),
                    Part::Quoted(" ".into()),
                    Part::QuotedVariable("f".into()),
                    Part::Quoted(String::new()),
                ]),
                Word(vec![
                    Part::Variable("g".into()),
                    Part::Quoted(" ".into()),
                    Part::Text("h".into()),
                ]),
            ]
        );
        assert_eq!(words("a\\\n  b").len(), 2);
        assert_eq!(words("x=$ y$").len(), 2);
        assert_eq!(words("a#b")[0].plain(), Some("a#b"));
    }

    #[test]
    fn lines_are_counted() {
        let tokens = lex("a\n'b\nc' d; e\n{").unwrap();
        let lines: Vec<_> = tokens.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 1, 2, 3, 3, 3, 3, 4]);
        assert_eq!(lex("a\n 'b\n").unwrap_err().0, 2);
    }

    #[test]
    fn plain_text_is_expanded() {
        let value = |name: &str| format!("<{name}>");
        assert_eq!(expand("a $b ${c}d $ 5$$e", value), "a <b> <c>d $ 5$<e>");
    }

    proptest! {
        #[test]
        fn any_text_is_cut_or_refused(text in "[a-z${}'\"\\\\ \n;#=]{0,60}", other in "\\PC{0,40}") {
            let _ = lex(&text);
            let _ = lex(&other);
            let _ = expand(&text, |_| String::new());
        }
    }
}
