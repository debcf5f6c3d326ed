//! Reading what scripts answer. A reply that is not as its script promises is an error, never a panic.

use redis::Value;

use crate::error::{Error, Result};

/// The elements of an array, taken one by one.
#[derive(Debug)]
pub(crate) struct Reply {
    operation: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    pub(crate) fn new(operation: &'static str, value: Value) -> Result<Self> {
        match value {
            Value::Array(values) => Ok(Self { operation, values: values.into_iter() }),
            other => Err(unexpected(operation, "an array", &other)),
        }
    }

    /// How many elements are left.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    fn next(&mut self) -> Value {
        self.values.next().unwrap_or(Value::Nil)
    }

    pub(crate) fn int(&mut self) -> Result<i64> {
        let value = self.next();
        match &value {
            Value::Int(number) => Ok(*number),
            Value::BulkString(bytes) => std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| unexpected(self.operation, "a number", &value)),
            _ => Err(unexpected(self.operation, "a number", &value)),
        }
    }

    /// A count or a time, never negative.
    pub(crate) fn count(&mut self) -> Result<u64> {
        Ok(u64::try_from(self.int()?).unwrap_or(0))
    }

    pub(crate) fn text(&mut self) -> Result<String> {
        let operation = self.operation;
        self.optional_text()?.ok_or_else(|| unexpected(operation, "a text", &Value::Nil))
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<String>> {
        match self.next() {
            Value::BulkString(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(error) => Err(unexpected(self.operation, "UTF-8", &Value::BulkString(error.into_bytes()))),
            },
            Value::SimpleString(text) => Ok(Some(text)),
            Value::Nil | Value::Boolean(false) => Ok(None),
            Value::Double(number) => Ok(Some(number.to_string())),
            other => Err(unexpected(self.operation, "a text", &other)),
        }
    }

    pub(crate) fn list(&mut self) -> Result<Self> {
        Self::new(self.operation, self.next())
    }

    /// A list, or `None` for Lua's `false`.
    pub(crate) fn optional_list(&mut self) -> Result<Option<Self>> {
        match self.next() {
            Value::Nil | Value::Boolean(false) => Ok(None),
            value => Self::new(self.operation, value).map(Some),
        }
    }

    pub(crate) fn texts(&mut self) -> Result<Vec<String>> {
        let mut list = self.list()?;
        (0..list.len()).map(|_| list.text()).collect()
    }

    /// Field and value, taken in turn.
    pub(crate) fn pairs(&mut self) -> Result<Vec<(String, String)>> {
        let mut list = self.list()?;
        (0..list.len() / 2).map(|_| Ok((list.text()?, list.text()?))).collect()
    }

    pub(crate) fn broken(&self, message: impl Into<String>) -> Error {
        Error::Server { operation: self.operation, subject: "its reply".to_owned(), message: message.into() }
    }
}

fn unexpected(operation: &'static str, wanted: &str, found: &Value) -> Error {
    let mut found = format!("{found:?}");
    if let Some((cut, _)) = found.char_indices().nth(200) {
        found.truncate(cut);
    }
    Error::Server { operation, subject: "its reply".to_owned(), message: format!("expected {wanted}, found {found}") }
}
