//! `ast.literal_eval` for lists, tuples, dictionaries with text keys, strings, integers, `True`, `False` and `None`.

use serde_json::{Map, Value};

/// The value of a Python literal.
///
/// # Errors
/// What is wrong, and at which byte.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value()?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.wrong("nothing more"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, expected: &str) -> String {
        format!("no Python literal: expected {expected} at byte {}", self.at)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, c: char) -> bool {
        self.space();
        let there = self.peek() == Some(c);
        self.at += if there { c.len_utf8() } else { 0 };
        there
    }

    fn value(&mut self) -> Result<Value, String> {
        self.space();
        match self.peek() {
            Some('[') => self.sequence('[', ']'),
            Some('(') => self.sequence('(', ')'),
            Some('{') => self.dictionary(),
            Some('\'' | '"') => self.string().map(Value::String),
            Some(c) if c == '-' || c.is_ascii_digit() => self.integer(),
            _ => {
                for (word, value) in
                    [("True", Value::Bool(true)), ("False", Value::Bool(false)), ("None", Value::Null)]
                {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.wrong("a value"))
            }
        }
    }

    fn sequence(&mut self, open: char, close: char) -> Result<Value, String> {
        self.eat(open);
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() && !self.eat(',') {
                return Err(self.wrong("a comma"));
            }
            if self.eat(close) {
                break;
            }
            items.push(self.value()?);
        }
        Ok(Value::Array(items))
    }

    fn dictionary(&mut self) -> Result<Value, String> {
        self.eat('{');
        let mut map = Map::new();
        while !self.eat('}') {
            if !map.is_empty() && !self.eat(',') {
                return Err(self.wrong("a comma"));
            }
            if self.eat('}') {
                break;
            }
            self.space();
            if !matches!(self.peek(), Some('\'' | '"')) {
                return Err(self.wrong("a text key"));
            }
            let key = self.string()?;
            if !self.eat(':') {
                return Err(self.wrong("a colon"));
            }
            let value = self.value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn integer(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.at += 1;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        self.text[start..self.at].parse::<i64>().map(Value::from).map_err(|_| self.wrong("an integer"))
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = self.take().ok_or_else(|| self.wrong("a quote"))?;
        let mut text = String::new();
        loop {
            match self.take() {
                Some(c) if c == quote => return Ok(text),
                Some('\\') => self.escape(&mut text)?,
                Some('\n') | None => return Err(self.wrong("the closing quote")),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Result<(), String> {
        let c = self.take().ok_or_else(|| self.wrong("an escape"))?;
        let digits = match c {
            '\n' => return Ok(()),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                let mut code = c as u32 - '0' as u32;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    self.at += 1;
                }
                text.push(char::from_u32(code).ok_or_else(|| self.wrong("a character"))?);
                return Ok(());
            }
            'n' | 't' | 'r' | 'a' | 'b' | 'f' | 'v' | '\\' | '\'' | '"' => {
                text.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'v' => '\u{b}',
                    other => other,
                });
                return Ok(());
            }
            // Python keeps the backslash of an escape that it does not know.
            other => {
                text.extend(['\\', other]);
                return Ok(());
            }
        };
        let code = self.text.get(self.at..self.at + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let c =
            code.and_then(char::from_u32).ok_or_else(|| self.wrong("hexadecimal digits of a character"))?;
        self.at += digits;
        text.push(c);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_repr_writes_is_read() {
        let text = r#"[{'question': "what's _  .", 'options': ['a\n', '\x00\xe9', '日"\\'], 'n': -3}, (True, None,), []]"#;
        let expected = json!([{"question": "what's _  .", "options": ["a\n", "\u{0}é", "日\"\\"], "n": -3}, [true, null], []]);
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn what_is_no_literal_is_refused_with_its_place() {
        for (text, at) in [("[1, 2", 5), ("{'a' 1}", 5), ("'a", 2), ("f(1)", 0), ("[1] 2", 4), ("{1: 2}", 1)]
        {
            let message = parse(text).unwrap_err();
            assert!(message.ends_with(&format!("at byte {at}")), "{text}: {message}");
        }
    }
}
