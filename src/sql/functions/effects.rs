//! Names of functions that write, lock, change or read the session, or answer differently each time or on each server.
//!
//! Kept by hand. What PostgreSQL 15 calls volatile and is in neither table (the handlers of access methods and
//! triggers) can't be called from SQL or is left to the catalogue.

use super::Behaviour;

/// Sorted by name within each behaviour.
#[rustfmt::skip]
pub(super) const EFFECTS: &[(Behaviour, &[&str])] = &[
    (Behaviour::Volatile, &[
        "clock_timestamp", "gen_random_uuid", "now", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "random",
        "random_normal", "statement_timestamp", "timeofday", "transaction_timestamp", "uuidv4", "uuidv7",
    ]),
    (Behaviour::Node, &[
        "current_query", "current_setting", "inet_client_addr", "inet_client_port", "inet_server_addr",
        "inet_server_port", "pg_available_extension_versions", "pg_available_extensions", "pg_backend_pid",
        "pg_blocking_pids", "pg_collation_actual_version", "pg_conf_load_time", "pg_config",
        "pg_control_checkpoint", "pg_control_init", "pg_control_recovery", "pg_control_system",
        "pg_current_logfile", "pg_current_snapshot", "pg_current_wal_flush_lsn", "pg_current_wal_insert_lsn",
        "pg_current_wal_lsn", "pg_current_xact_id_if_assigned", "pg_cursor", "pg_database_collation_actual_version",
        "pg_database_size", "pg_extension_update_paths", "pg_get_backend_memory_contexts",
        "pg_get_multixact_members", "pg_get_publication_tables", "pg_get_replication_slots",
        "pg_get_shmem_allocations", "pg_get_wal_replay_pause_state", "pg_get_wal_resource_managers",
        "pg_hba_file_rules", "pg_ident_file_mappings", "pg_indexes_size", "pg_is_in_recovery",
        "pg_is_other_temp_schema", "pg_is_wal_replay_paused", "pg_isolation_test_session_is_blocked",
        "pg_jit_available", "pg_last_committed_xact", "pg_last_wal_receive_lsn", "pg_last_wal_replay_lsn",
        "pg_last_xact_replay_timestamp", "pg_listening_channels", "pg_lock_status", "pg_ls_archive_statusdir",
        "pg_ls_dir", "pg_ls_logdir", "pg_ls_logicalmapdir", "pg_ls_logicalsnapdir", "pg_ls_replslotdir",
        "pg_ls_tmpdir", "pg_ls_waldir", "pg_my_temp_schema", "pg_notification_queue_usage",
        "pg_partition_ancestors", "pg_partition_tree", "pg_postmaster_start_time", "pg_prepared_statement",
        "pg_prepared_xact", "pg_read_binary_file", "pg_read_file", "pg_relation_is_publishable", "pg_relation_size",
        "pg_replication_origin_progress", "pg_replication_origin_session_is_setup",
        "pg_replication_origin_session_progress", "pg_safe_snapshot_blocking_pids", "pg_sequence_last_value",
        "pg_settings_get_flags", "pg_show_all_file_settings", "pg_show_all_settings",
        "pg_show_replication_origin_status", "pg_snapshot_xip", "pg_snapshot_xmax", "pg_snapshot_xmin",
        "pg_split_walfile_name", "pg_stat_file", "pg_table_size", "pg_tablespace_location", "pg_tablespace_size",
        "pg_timezone_abbrevs", "pg_timezone_names", "pg_total_relation_size", "pg_trigger_depth",
        "pg_visible_in_snapshot", "pg_walfile_name", "pg_walfile_name_offset", "pg_xact_commit_timestamp",
        "pg_xact_commit_timestamp_origin", "pg_xact_status", "txid_current_if_assigned", "txid_current_snapshot",
        "txid_snapshot_xip", "txid_snapshot_xmax", "txid_snapshot_xmin", "txid_status", "txid_visible_in_snapshot",
        "version",
    ]),
    (Behaviour::Writes, &[
        "brin_desummarize_range", "brin_summarize_new_values", "brin_summarize_range", "gin_clean_pending_list",
        "lo_creat", "lo_create", "lo_export", "lo_from_bytea", "lo_import", "lo_put", "lo_unlink",
        "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_cancel_backend", "pg_clear_attribute_stats",
        "pg_clear_relation_stats", "pg_create_restore_point", "pg_current_xact_id", "pg_drop_replication_slot",
        "pg_export_snapshot", "pg_extension_config_dump", "pg_import_system_collations",
        "pg_log_backend_memory_contexts", "pg_log_standby_snapshot", "pg_logical_emit_message",
        "pg_logical_slot_get_binary_changes", "pg_logical_slot_get_changes", "pg_logical_slot_peek_binary_changes",
        "pg_logical_slot_peek_changes", "pg_nextoid", "pg_promote", "pg_reload_conf", "pg_replication_origin_advance",
        "pg_replication_origin_create", "pg_replication_origin_drop", "pg_replication_origin_xact_reset",
        "pg_replication_origin_xact_setup", "pg_replication_slot_advance", "pg_restore_attribute_stats",
        "pg_restore_relation_stats", "pg_rotate_logfile", "pg_rotate_logfile_old", "pg_stat_clear_snapshot",
        "pg_stat_force_next_flush", "pg_stat_reset", "pg_stat_reset_backend_stats", "pg_stat_reset_replication_slot",
        "pg_stat_reset_shared", "pg_stat_reset_single_function_counters", "pg_stat_reset_single_table_counters",
        "pg_stat_reset_slru", "pg_stat_reset_subscription_stats", "pg_stop_making_pinned_objects", "pg_switch_wal",
        "pg_sync_replication_slots", "pg_terminate_backend", "pg_try_advisory_xact_lock",
        "pg_try_advisory_xact_lock_shared", "pg_wal_replay_pause", "pg_wal_replay_resume", "txid_current",
    ]),
    (Behaviour::RunsSql, &[
        "cursor_to_xml", "cursor_to_xmlschema", "database_to_xml", "database_to_xml_and_xmlschema",
        "database_to_xmlschema", "query_to_xml", "query_to_xml_and_xmlschema", "query_to_xmlschema", "schema_to_xml",
        "schema_to_xml_and_xmlschema", "schema_to_xmlschema", "table_to_xml", "table_to_xml_and_xmlschema",
        "table_to_xmlschema", "ts_rewrite", "ts_stat",
    ]),
    (Behaviour::LargeObject, &[
        "lo_close", "lo_get", "lo_lseek", "lo_lseek64", "lo_open", "lo_tell", "lo_tell64", "lo_truncate",
        "lo_truncate64", "loread", "lowrite",
    ]),
    (Behaviour::Notify, &[
        "pg_notify",
    ]),
    (Behaviour::SetConfig, &[
        "set_config",
    ]),
    (Behaviour::SequenceAdvance, &[
        "nextval", "setval",
    ]),
    (Behaviour::SequenceRead, &[
        "currval", "lastval",
    ]),
    (Behaviour::SetSeed, &[
        "setseed",
    ]),
    (Behaviour::AdvisoryLock, &[
        "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
    ]),
    (Behaviour::AdvisoryUnlock, &[
        "pg_advisory_unlock", "pg_advisory_unlock_all", "pg_advisory_unlock_shared",
    ]),
    (Behaviour::SessionState, &[
        "binary_upgrade_create_empty_extension", "binary_upgrade_set_missing_value",
        "binary_upgrade_set_next_array_pg_type_oid", "binary_upgrade_set_next_heap_pg_class_oid",
        "binary_upgrade_set_next_heap_relfilenode", "binary_upgrade_set_next_index_pg_class_oid",
        "binary_upgrade_set_next_index_relfilenode", "binary_upgrade_set_next_multirange_array_pg_type_oid",
        "binary_upgrade_set_next_multirange_pg_type_oid", "binary_upgrade_set_next_pg_authid_oid",
        "binary_upgrade_set_next_pg_enum_oid", "binary_upgrade_set_next_pg_tablespace_oid",
        "binary_upgrade_set_next_pg_type_oid", "binary_upgrade_set_next_toast_pg_class_oid",
        "binary_upgrade_set_next_toast_relfilenode", "binary_upgrade_set_record_init_privs", "pg_backup_start",
        "pg_backup_stop", "pg_copy_logical_replication_slot", "pg_copy_physical_replication_slot",
        "pg_create_logical_replication_slot", "pg_create_physical_replication_slot",
        "pg_replication_origin_session_reset", "pg_replication_origin_session_setup", "pg_start_backup",
        "pg_stop_backup",
    ]),
];

/// Those of [`Behaviour::Writes`] that a server in recovery carries out as well: they lock, signal, or change something of
/// the server. Sorted.
#[rustfmt::skip]
pub(super) const ACTS_ON_SERVER: &[&str] = &[
    "lo_export", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_cancel_backend",
    "pg_drop_replication_slot", "pg_export_snapshot", "pg_log_backend_memory_contexts",
    "pg_logical_slot_get_binary_changes", "pg_logical_slot_get_changes", "pg_promote", "pg_reload_conf",
    "pg_replication_slot_advance", "pg_rotate_logfile", "pg_rotate_logfile_old", "pg_stat_reset",
    "pg_stat_reset_backend_stats", "pg_stat_reset_replication_slot", "pg_stat_reset_shared",
    "pg_stat_reset_single_function_counters", "pg_stat_reset_single_table_counters", "pg_stat_reset_slru",
    "pg_stat_reset_subscription_stats", "pg_sync_replication_slots", "pg_terminate_backend",
    "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared", "pg_wal_replay_pause",
    "pg_wal_replay_resume",
];
