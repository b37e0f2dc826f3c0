//! The SQLSTATE codes that pgherd itself sends (PostgreSQL manual, appendix A).

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(&'static str);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: Self = Self($code);)*
        }
    };
}

states! {
    /// protocol_violation
    PROTOCOL_VIOLATION = "08P01";
    /// connection_failure
    CONNECTION_FAILURE = "08006";
    /// sqlclient_unable_to_establish_sqlconnection
    CANNOT_CONNECT = "08001";
    /// transaction_resolution_unknown
    TRANSACTION_RESOLUTION_UNKNOWN = "08007";
    /// feature_not_supported
    FEATURE_NOT_SUPPORTED = "0A000";
    /// character_not_in_repertoire
    CHARACTER_NOT_IN_REPERTOIRE = "22021";
    /// numeric_value_out_of_range
    NUMERIC_VALUE_OUT_OF_RANGE = "22003";
    /// invalid_parameter_value
    INVALID_PARAMETER_VALUE = "22023";
    /// active_sql_transaction
    ACTIVE_SQL_TRANSACTION = "25001";
    /// no_active_sql_transaction
    NO_ACTIVE_SQL_TRANSACTION = "25P01";
    /// read_only_sql_transaction
    READ_ONLY_SQL_TRANSACTION = "25006";
    /// in_failed_sql_transaction
    IN_FAILED_SQL_TRANSACTION = "25P02";
    /// idle_in_transaction_session_timeout
    IDLE_IN_TRANSACTION_TIMEOUT = "25P03";
    /// invalid_sql_statement_name
    INVALID_STATEMENT_NAME = "26000";
    /// invalid_authorization_specification
    INVALID_AUTHORIZATION = "28000";
    /// invalid_password
    INVALID_PASSWORD = "28P01";
    /// invalid_cursor_name
    INVALID_CURSOR_NAME = "34000";
    /// invalid_savepoint_specification
    INVALID_SAVEPOINT_SPECIFICATION = "3B001";
    /// invalid_catalog_name
    INVALID_CATALOG_NAME = "3D000";
    /// syntax_error
    SYNTAX_ERROR = "42601";
    /// duplicate_cursor
    DUPLICATE_CURSOR = "42P03";
    /// duplicate_prepared_statement
    DUPLICATE_PREPARED_STATEMENT = "42P05";
    /// insufficient_privilege
    INSUFFICIENT_PRIVILEGE = "42501";
    /// undefined_object
    UNDEFINED_OBJECT = "42704";
    /// undefined_table
    UNDEFINED_TABLE = "42P01";
    /// program_limit_exceeded
    PROGRAM_LIMIT_EXCEEDED = "54000";
    /// too_many_connections
    TOO_MANY_CONNECTIONS = "53300";
    /// out_of_memory
    OUT_OF_MEMORY = "53200";
    /// configuration_limit_exceeded
    CONFIGURATION_LIMIT_EXCEEDED = "53400";
    /// object_not_in_prerequisite_state
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000";
    /// lock_not_available
    LOCK_NOT_AVAILABLE = "55P03";
    /// serialization_failure
    SERIALIZATION_FAILURE = "40001";
    /// transaction_rollback
    TRANSACTION_ROLLBACK = "40000";
    /// query_canceled
    QUERY_CANCELED = "57014";
    /// admin_shutdown
    ADMIN_SHUTDOWN = "57P01";
    /// cannot_connect_now
    CANNOT_CONNECT_NOW = "57P03";
    /// idle_session_timeout
    IDLE_SESSION_TIMEOUT = "57P05";
    /// system_error
    SYSTEM_ERROR = "58000";
    /// config_file_error
    CONFIG_FILE_ERROR = "F0000";
    /// internal_error
    INTERNAL_ERROR = "XX000";
}

impl SqlState {
    /// The five characters.
    pub fn code(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
