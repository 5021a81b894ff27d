// SPDX-License-Identifier: Apache-2.0
//! GRUB's script as a tree of commands.

use std::rc::Rc;

use super::lex::{SyntaxError, Token, Word, lex};

/// Blocks in one another. Generated files have four.
const DEPTH_MAX: usize = 32;

/// A command with its line.
#[derive(Debug)]
pub(super) enum Node {
    Command {
        line: usize,
        words: Vec<Word>,
        /// The block behind it, of a menu entry or submenu.
        block: Option<Script>,
    },
    If {
        /// Conditions with what follows if they hold.
        branches: Vec<(Script, Script)>,
        otherwise: Script,
    },
    For {
        variable: String,
        words: Vec<Word>,
        body: Script,
    },
    Function {
        name: String,
        body: Script,
    },
    /// A loop with a condition, which is not run.
    Loop,
}

/// Commands one after another.
pub(super) type Script = Rc<[Node]>;

/// Parses a whole file.
pub(super) fn parse(text: &str) -> Result<Script, SyntaxError> {
    let mut parser = Parser {
        tokens: lex(text)?,
        at: 0,
        depth: 0,
    };
    parser.script(&End::File)
}

/// What ends a sequence of commands.
enum End {
    File,
    Brace,
    Words(&'static [&'static str]),
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn line(&self) -> usize {
        let token = self.tokens.get(self.at).or_else(|| self.tokens.last());
        token.map_or(1, |(line, _)| *line)
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, SyntaxError> {
        Err((self.line(), what.into()))
    }

    /// Whether the next token is the reserved word.
    fn is_at(&self, reserved: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if word.plain() == Some(reserved))
    }

    fn expect(&mut self, reserved: &str) -> Result<(), SyntaxError> {
        if !self.is_at(reserved) {
            return self.error(format!("`{reserved}` is missing"));
        }
        self.at += 1;
        Ok(())
    }

    fn script(&mut self, end: &End) -> Result<Script, SyntaxError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.error("too many blocks in one another");
        }
        let mut nodes = Vec::new();
        loop {
            match (self.peek(), end) {
                (Some(Token::End), _) => self.at += 1,
                (None, End::File) => break,
                (None, End::Brace) => return self.error("`}` is missing"),
                (None, End::Words(words)) => {
                    return self.error(format!("`{}` is missing", words.join("` or `")));
                }
                (Some(Token::Close), End::Brace) => {
                    self.at += 1;
                    break;
                }
                (Some(Token::Close), _) => return self.error("a `}` too many"),
                (Some(Token::Word(_)), End::Words(words))
                    if words.iter().any(|word| self.is_at(word)) =>
                {
                    break;
                }
                _ => nodes.push(self.node()?),
            }
        }
        self.depth -= 1;
        Ok(nodes.into())
    }

    fn node(&mut self) -> Result<Node, SyntaxError> {
        let first = match self.peek() {
            Some(Token::Word(word)) => word.plain().unwrap_or_default(),
            _ => "",
        };
        match first {
            "if" => self.condition(),
            "for" => self.for_loop(),
            "while" | "until" => {
                self.at += 1;
                self.script(&End::Words(&["do"]))?;
                self.expect("do")?;
                self.script(&End::Words(&["done"]))?;
                self.expect("done")?;
                Ok(Node::Loop)
            }
            "function" => self.function(),
            _ => self.command(),
        }
    }

    fn condition(&mut self) -> Result<Node, SyntaxError> {
        let mut branches = Vec::new();
        loop {
            // `if` or `elif`.
            self.at += 1;
            let condition = self.script(&End::Words(&["then"]))?;
            self.expect("then")?;
            let body = self.script(&End::Words(&["elif", "else", "fi"]))?;
            branches.push((condition, body));
            if !self.is_at("elif") {
                break;
            }
        }
        let otherwise = if self.is_at("else") {
            self.at += 1;
            self.script(&End::Words(&["fi"]))?
        } else {
            Rc::from([])
        };
        self.expect("fi")?;
        Ok(Node::If {
            branches,
            otherwise,
        })
    }

    fn for_loop(&mut self) -> Result<Node, SyntaxError> {
        self.at += 1;
        let variable = self.name()?;
        self.expect("in")?;
        let words = self.words();
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        self.expect("do")?;
        let body = self.script(&End::Words(&["done"]))?;
        self.expect("done")?;
        Ok(Node::For {
            variable,
            words,
            body,
        })
    }

    fn function(&mut self) -> Result<Node, SyntaxError> {
        self.at += 1;
        let name = self.name()?;
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        let Some(body) = self.block()? else {
            return self.error("`{` is missing");
        };
        Ok(Node::Function { name, body })
    }

    fn name(&mut self) -> Result<String, SyntaxError> {
        if let Some(Token::Word(word)) = self.peek()
            && let Some(name) = word.plain()
        {
            let name = name.to_owned();
            self.at += 1;
            return Ok(name);
        }
        self.error("a name is missing")
    }

    fn command(&mut self) -> Result<Node, SyntaxError> {
        let line = self.line();
        let words = self.words();
        let block = self.block()?;
        Ok(Node::Command { line, words, block })
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    /// The block that begins here, if one does.
    fn block(&mut self) -> Result<Option<Script>, SyntaxError> {
        if self.peek() != Some(&Token::Open) {
            return Ok(None);
        }
        self.at += 1;
        self.script(&End::Brace).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nested_blocks() {
        let script = parse(
            "function f {\n true\n}\nif [ a = b ]; then\n x\nelif y; then z; else w\nfi\n\
             submenu 'S' $o {\n menuentry M { linux /k }\n}\nfor i in a b; do echo $i; done\n\
             while true; do x; done\n",
        )
        .unwrap();
        assert_eq!(script.len(), 5);
        let Node::If {
            branches,
            otherwise,
        } = &script[1]
        else {
            panic!("{script:?}");
        };
        assert_eq!((branches.len(), otherwise.len()), (2, 1));
    }

    #[test]
    fn what_is_missing_is_said_with_the_line() {
        for (text, line, what) in [
            (
                "a\nif x; then\n y\n",
                3,
                "`elif` or `else` or `fi` is missing",
            ),
            ("menuentry a {\n b\n", 2, "`}` is missing"),
            ("a\n}\n", 2, "a `}` too many"),
            ("if x\ny\n", 2, "`then` is missing"),
            ("for 'i' in", 1, "a name is missing"),
            ("function f\nx\n", 2, "`{` is missing"),
        ] {
            assert_eq!(parse(text).unwrap_err(), (line, what.to_owned()), "{text}");
        }
    }

    #[test]
    fn depth_has_a_limit() {
        assert!(
            parse(&"a {\n".repeat(100_000))
                .unwrap_err()
                .1
                .contains("too many")
        );
        assert!(
            parse(&"if ".repeat(100_000))
                .unwrap_err()
                .1
                .contains("too many")
        );
    }

    proptest! {
        #[test]
        fn any_script_is_parsed_or_refused(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "if", "then", "else", "elif", "fi", "for", "in", "do", "done", "while",
                    "function", "{", "}", "\n", ";", "a", "menuentry", "'q'", "$v",
                ]),
                0..60,
            ),
        ) {
            let _ = parse(&words.join(" "));
        }
    }
}
