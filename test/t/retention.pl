# retention.pl: months are dropped or archived whole, by hand and by kavach.retention; what they added up to stays, what
# only their rows knew is an error; nobody queues for that, and nothing is lost half-way.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

# A worker waits for older transactions a second longer than deadlock_timeout: long enough to look at it meanwhile.
my $node = PostgreSQL::Test::Cluster->new('retention');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\ntimezone = 'UTC'\ndeadlock_timeout = 1s\nautovacuum = off");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	CREATE ROLE app LOGIN; CREATE ROLE boss LOGIN; CREATE ROLE clerk LOGIN;
	SELECT kavach_grant_role('app', 'app'), kavach_grant_role('boss', 'admin'), kavach_grant_role('clerk', 'reader');
	SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
	       kavach_create_agent('agt_b', 'bob', permissions => '[{"resource": "*", "actions": ["*"]}]')});

my @months = qw(2024-01 2024-02 2024-03 2024-04 2024-05 2024-06 2024-07 2024-08);
my %open;    # an authorization of each month that nobody settles
sub fill
{
	my ($month) = @_;
	$open{$month} = $node->safe_psql('postgres', qq{
		SET kavach.clock = '$month-10Z';
		SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 100)});
	$node->safe_psql('postgres', qq{
		SET kavach.clock = '$month-10Z';
		SELECT kavach_authorize('agt_b', 'run', 'x', 10, request_id => 'r-$month'), kavach_authorize('agt_nobody', 'run', 'x', 1);
		SET kavach.clock = '$month-28 23:59:59Z';
		SELECT kavach_record_usage('agt_b', 7, request_id => 'r-$month')});
	return;
}
fill($_) foreach @months;
$node->safe_psql('postgres', q{SELECT kavach_authorize('agt_a', 'run', 'x', 1000); SELECT kavach.close_batches()});

my $sums = q{
	SELECT 'day', day::text, user_id, agent_id, calls, denied, tokens_cost::text FROM kavach.usage_daily
	UNION ALL SELECT 'month', month::text, user_id, agent_id, calls, denied, tokens_cost::text FROM kavach.usage_monthly
	UNION ALL SELECT 'total', day::text, NULL, NULL, calls, denied, tokens_cost::text FROM kavach.usage_total
	UNION ALL SELECT scope || period, start::text, subject, NULL, calls, NULL, tokens::text FROM kavach.usage_scope ORDER BY 1, 2, 3, 4};
my $before = $node->safe_psql('postgres', $sums);

# What has to stay as it is: reports of whole days, and budgets, with counters as they are loaded.
$node->safe_psql('postgres', q{
	SELECT kavach_create_policy(policy_id => 'pol_total', all_agents => true, limits => '{"max_tokens_cost_total": 5000, "max_calls_total": 100}'),
	       kavach_create_policy(policy_id => 'pol_user', each => 'user', limits => '{"max_tokens_cost_total": 2000}')});
my @reports = (
	(map { "SELECT * FROM kavach_billing_report(2024, $_) ORDER BY 1, 2" } 1 .. 8),
	'SELECT * FROM kavach_cost_by_agent(NULL, NULL) ORDER BY 1',
	q{SELECT * FROM kavach_cost_by_user('2024-01-02Z', '2024-06-29Z') ORDER BY 1},
	'SELECT * FROM kavach_cost_by_day(NULL, NULL, NULL) ORDER BY 1',
	q{SELECT * FROM kavach_cost_by_day('agt_a', '2024-01-10Z', '2024-05-11Z') ORDER BY 1},
	q{SELECT * FROM kavach_usage_report(group_by => '{user,tenant,model}', bucket => 'month') ORDER BY 1, 2, 3},
	q{SELECT * FROM kavach_usage_report('2024-01-01Z', '2024-09-01Z', '{agent}', 'day') ORDER BY 1, 4},
	(map { "SELECT * FROM kavach.$_ ORDER BY 1" } qw(usage_by_agent usage_by_user usage_by_day)),
	'SELECT kavach_reload_counters() IS NULL',
	q{SELECT policy_id, subject, measure, period, used, remaining FROM kavach.budget_status ORDER BY 1, 2, 3},
	q{SELECT * FROM kavach.current_usage('agent', 'agt_a', 'total', true)});
my %report;
sub keep_reports { $report{$_} = $node->safe_psql('postgres', $_) foreach @reports; return }
sub same_reports { my ($name) = @_; is($node->safe_psql('postgres', $_), $report{$_}, "$name: $_") foreach @reports; return }
my $rows = 'SELECT count(*), sum(tokens_cost) FROM kavach.audit_log';
is($node->safe_psql('postgres', $rows), '33|1856', 'the ledger as it was');

# The outcome: what was answered, or the SQLSTATE.
sub outcome
{
	my ($sql, $user) = @_;
	my ($status, $out, $err) = $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose', '-U', $user // getpwuid($<) ], on_error_stop => 1);
	return $status == 0 ? $out : $err =~ /(?:ERROR|FATAL): +([0-9A-Z]{5}): ([^\n]*)/ ? "$1 $2" : $err;
}
sub months { return $node->safe_psql('postgres', q{SELECT string_agg(substr(relname, 11), ' ' ORDER BY relname) FROM pg_class WHERE relname ~ '^audit_log_2024_..$'}) }
sub record { my ($month) = @_; return $node->safe_psql('postgres', "SELECT kind, rows, calls, tokens_cost, relation, finished_at IS NOT NULL FROM kavach.dropped_month WHERE month = '$month-01'") }
sub settled { my ($month) = @_; return $node->poll_query_until('postgres', "SELECT finished_at IS NOT NULL FROM kavach.dropped_month WHERE month = '$month-01'") || die }

# ---- what is refused ----

like(outcome('SELECT kavach_drop_month(NULL)'), qr/^22004 month must not be NULL/, 'no month');
like(outcome(q{SELECT kavach_drop_month('infinity')}), qr/^22008/, 'no month of the ledger');
like(outcome(q{SELECT kavach_drop_month('2023-12-01')}), qr/^42704 the ledger has no month 2023-12/, 'one that it does not have');
like(outcome(q{BEGIN; SELECT kavach_drop_month('2024-01-01')}), qr/^25001/, 'in a transaction block');
like(outcome(q{SELECT kavach_archive_month('2024-01-01', 'nowhere')}), qr/^3F000/, 'into no schema');
like(outcome(q{SELECT kavach_attach_month('2024-01-01')}), qr/^42704 month 2024-01 was not taken out/, 'attached before it was taken out');
like(outcome(q{SELECT kavach_drop_month(current_date)}), qr/^55000 month \S+ is not over/, 'the present one');
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}, 'app'), qr/^42501/, 'by an application');
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}, 'clerk'), qr/^42501/, 'by a reader');
like(outcome(q{DROP TABLE kavach.audit_log_2024_01}), qr/^42501/, 'by DROP TABLE');
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET kavach.clock = '2024-02-07 23:59:59Z'});
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}), qr/^55000 month 2024-01 is still needed/, 'one whose request_ids are remembered');
like(outcome(q{SELECT kavach_drop_month('2024-02-01')}), qr/^55000 month 2024-02 is not over/, 'and by an earlier clock one that is over');
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET kavach.clock');

my ($holder, $writer, $other) = map { Session->new($node) } 1 .. 3;
$holder->query(q{BEGIN; SELECT kavach_authorize('agt_a', 'run', 'x', 0)});
$writer->query(q{SET kavach.clock = '2024-01-20Z'; SELECT kavach_authorize('agt_b', 'run', 'x', 0)});
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}), qr/^55006 month 2024-01 has rows in batches that are not closed/, 'one with a row in an open batch');
$holder->query('ROLLBACK');
$writer->query(q{BEGIN; SELECT kavach_authorize('agt_b', 'run', 'x', 0)});
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}), qr/^55P03/, 'one that somebody writes into');
$writer->query('COMMIT');
$node->safe_psql('postgres', q{INSERT INTO kavach.audit_log (id, ts, batch, kind, agent_id, user_id, result, code, tokens_cost)
	SELECT '018d0000-0000-7000-8000-000000000001', '2024-02-11Z', 0, 'adjustment', 'agt_a', 'ann', 'allowed', 'recorded', 1});
like(outcome(q{SELECT kavach_drop_month('2024-02-01')}), qr/^55000 the rollups do not have all rows of month 2024-02/, 'one with a row that no rollup has');
is(months(), join(' ', map { s/-/_/r } @months), 'all of them are there');
is($node->safe_psql('postgres', 'SELECT count(*) FROM kavach.dropped_month'), '0', 'and none is recorded');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_trigger WHERE tgname = 'taken_out'}), '0', 'nor marked');
$node->safe_psql('postgres', 'SELECT kavach.close_batches()');
$before = $node->safe_psql('postgres', $sums);
keep_reports();

# ---- by hand ----

$other->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');    # a snapshot of before, and no lock
is($other->query($rows), '36|1857', 'a transaction that has read all of it');
$other->query('COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
is(outcome(q{SELECT kavach_drop_month('2024-01-31')}, 'boss'), 't', 'a month is dropped by an admin');
is($other->query(q{SELECT kavach.require_months('2023-12-01Z', NULL)}), '2023-12-01 00:00:00+00', 'who has a snapshot of before is not told');
$other->query('COMMIT');
is(record('2024-01'), 'dropped|6|5|107||t', 'which is recorded');
is($node->safe_psql('postgres', q{SELECT dropped_by, first_seal_no <= last_seal_no FROM kavach.dropped_month}), 'boss|t', 'with who did it');
unlike(months(), qr/2024_01/, 'its table is gone');
is($node->safe_psql('postgres', $rows), '30|1750', 'and its rows');
is($node->safe_psql('postgres', $sums), $before, 'the rollups are as they were');
same_reports('after that');
is(outcome(q{SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 5000)}), 'budget_exceeded|200', 'a budget knows what is gone');
is($node->safe_psql('postgres', "SELECT count(*) FROM kavach.open_authorization WHERE id = '$open{'2024-01'}'"), '0', 'nobody is asked to settle its calls');
like(outcome("SELECT kavach_record_usage('agt_a', 1, '$open{'2024-01'}')"), qr/^KV005 the ledger has no rows of 2024-01/, 'nor can');
like(outcome(q{SELECT kavach_drop_month('2024-01-01')}), qr/^55000 month 2024-01 is not in the ledger any more/, 'it is not dropped twice');
like(outcome(q{SELECT kavach_attach_month('2024-01-01')}), qr/^42P01 month 2024-01 was dropped/, 'nor attached');
like(outcome(q{SET kavach.clock = '2024-01-31 23:59:59Z'; SELECT kavach_authorize('agt_a', 'run', 'x', 1)}), qr/^KV005/, 'no call is recorded in it');
like($writer->query(q{SELECT kavach_authorize('agt_b', 'run', 'x', 1)}), qr/KV005/, 'not by who has just written there');
like(outcome(q{SELECT kavach_create_months('2023-12-01', '2024-02-01')}), qr/^KV005/, 'it is not made anew');
is(outcome(q{SET kavach.clock = '2023-12-31Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 0)}), 'allowed', 'the month before goes on');
unlike(months(), qr/2024_01/, 'and does not make it ahead');
$node->safe_psql('postgres', 'SELECT kavach.close_batches()');
is(outcome(q{SELECT kavach_drop_month('2023-12-01')}), 't', 'it goes, too');
$before = $node->safe_psql('postgres', $sums);

# ---- who asks for what is gone ----

my %bound = (
	q{require_months('2024-02-01Z', NULL)} => '2024-02-01 00:00:00+00',
	q{require_months('2023-01-01Z', '2023-12-01Z')} => '2023-01-01 00:00:00+00',
	q{require_months('2024-01-31 23:59:59Z', NULL)} => 'KV005 the ledger has no rows of 2024-01 any more',
	q{require_months(NULL, '2023-12-01 00:00:00.000001Z')} => 'KV005 the ledger has no rows of 2023-12 any more',
	q{require_months(NULL, NULL)} => 'KV005 the ledger has no rows of 2024-01 any more',
	q{kept_since(NULL, NULL)} => '2024-02-01 00:00:00+00',
	q{kept_since('-infinity', 'infinity')} => '2024-02-01 00:00:00+00',
	q{kept_since(NULL, '2024-02-01Z')} => 'KV005 the ledger has no rows of 2024-01 any more',
	q{kept_since('2024-01-31Z', NULL)} => 'KV005 the ledger has no rows of 2024-01 any more',
	q{kept_since(NULL, '2023-12-01Z')} => '-infinity',
	q{kept_since('2024-02-01Z', NULL)} => '2024-02-01 00:00:00+00');
is(outcome("SELECT kavach.$_", 'clerk'), $bound{$_}, $_) foreach sort keys %bound;
is(outcome(q{SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
	SELECT count(*) FROM kavach.ledger WHERE ts >= kavach.kept_since(NULL, NULL)}), $node->safe_psql('postgres', 'SELECT count(*) FROM kavach.ledger'), 'as a bound, in parallel workers');
like($node->safe_psql('postgres', q{EXPLAIN SELECT * FROM kavach.ledger WHERE ts >= kavach.require_months('2024-08-01Z', NULL)}), qr/Subplans Removed/, 'which prunes');
is($other->query(q{PREPARE sum AS SELECT count(*) FROM kavach.ledger WHERE ts >= kavach.require_months($1, NULL) AND ts < $2; SET plan_cache_mode = force_generic_plan;
	EXECUTE sum('2024-03-01Z', '2024-04-01Z')}), '4', 'a plan that is kept');

like(outcome("SELECT count(*) FROM $_", 'clerk'), qr/^KV005/, $_) foreach
	q{kavach_cost_by_day('agt_a', '2024-01-10 12:00Z', '2024-02-01Z')}, q{kavach_cost_by_day('agt_a', '2023-12-01Z', '2024-01-10 00:00:01Z')},
	q{kavach_cost_by_agent('2024-01-10 01:00Z', '2024-01-10 02:00Z')}, q{kavach_cost_by_user('2023-12-20 01:00Z', NULL)},
	q{kavach_usage_report('2024-01-01Z', '2024-02-01Z', '{action}')}, q{kavach_usage_report('2023-01-01Z', '2024-09-01Z', '{metadata.k}', 'day')},
	q{kavach_usage_report('2024-01-01Z', '2024-02-01Z', '{}', 'hour')}, q{kavach_usage_report(group_by => '{resource}')},
	q{kavach_usage_report('2024-01-01Z', '2024-02-01Z', '{action}') WHERE action = 'run'}, q{kavach_usage_report('2024-01-01Z', '2024-02-01Z', '{resource,agent}') WHERE agent_id = 'agt_b'},
	q{kavach_export('2024-01-01Z', '2024-02-01Z')}, q{kavach_export('2024-01-31Z')}, q{kavach_export(until => '2024-01-31Z')}, q{kavach_export_json('2024-01-31Z', '2024-03-01Z')},
	q{kavach_export('2024-01-01Z', '2024-02-01Z') WHERE agent_id = 'agt_b'},
	map { "kavach_query_audit($_)" } q{since => '2024-01-01Z'}, q{until => '2024-02-01Z'}, q{'agt_a', since => '2024-01-31Z', max_rows => 1},
	q{user_id => 'ann', since => '2023-12-31Z', max_rows => 10}, q{user_id => 'ann', until => '2024-02-01Z', max_rows => 10}, qq{before => '$open{'2024-01'}'}, qq{tenant_id => 'acme', before => '$open{'2024-01'}', max_rows => 5};
is(outcome("SELECT count(*) FROM $_", 'clerk'), outcome("SELECT count(*) FROM kavach.audit_log WHERE ts >= '2024-02-01Z'"), "$_ has what there is") foreach
	'kavach_export()', 'kavach_export_json()', 'kavach_query_audit()', q{kavach_query_audit(since => '2024-02-01Z')}, q{kavach_export('2024-02-01Z')};
is(outcome("SELECT count(*) FROM kavach_query_audit(user_id => 'bob', max_rows => 1000)"), outcome(q{SELECT count(*) FROM kavach.audit_log WHERE user_id = 'bob'}), 'so has a page');
is(outcome(q{SELECT calls, tokens_cost FROM kavach_usage_report('2024-02-01Z', '2024-03-01Z', '{action}') WHERE action = 'run'}), '3|107', 'and a report by action');
is(outcome('COPY (SELECT * FROM kavach_export()) TO STDOUT') =~ tr/\n//, $node->safe_psql('postgres', 'SELECT count(*) - 1 FROM kavach.audit_log'), 'and COPY');

# ---- while somebody reads ----

$node->safe_psql('postgres', q{ALTER SYSTEM SET deadlock_timeout = '60s'; SELECT pg_reload_conf()});
my $export = Session->new($node);
$export->query('BEGIN; DECLARE export CURSOR FOR SELECT * FROM kavach.ledger; FETCH 1 FROM export');
my $admin = Session->new($node);
$admin->send(q{SELECT kavach_drop_month('2024-03-01')});
my $waits = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'kavach retention worker' AND wait_event_type = 'Lock' AND wait_event = 'virtualxid'};
$node->poll_query_until('postgres', $waits) or die;
$other->query(q{SET lock_timeout = '5s'; SET deadlock_timeout = '1s'});
is($other->query(q{SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 0, request_id => 'now')}), 'allowed', 'an export is under way: a call');
is($other->query(q{SELECT code FROM kavach_record_usage('agt_a', 1, request_id => 'now')}), 'recorded', 'its settlement');
is($other->query(q{SET kavach.clock = '2024-10-15Z'; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 0); RESET kavach.clock}), 'allowed', 'the first of a month');
is($other->query(q{SELECT kavach_create_months('2024-12-01', '2024-12-01')}), '1', 'a month that is made by hand');
is($other->query('SELECT count(*) FROM kavach.ledger WHERE ts < kavach.kept_since(NULL, NULL)'), '5', 'a report of all that is there');
is($other->query('EXECUTE sum(\'2024-05-01Z\', \'2024-06-01Z\')'), '4', 'one by a plan that was made before');
like($other->query('EXECUTE sum(\'2024-03-01Z\', \'2024-04-01Z\')'), qr/KV005/, 'which knows what is gone');
is($node->safe_psql('postgres', $waits), 't', 'none of them has waited for it');
ok(!$admin->answered, 'while it still waits');
is($export->query('FETCH ALL FROM export; MOVE BACKWARD ALL FROM export; ') =~ tr/\n//, 29, 'the export has all its rows');
$export->query('COMMIT');
is($admin->answer, 't', 'and then the month is dropped');
is(record('2024-03'), 'dropped|4|3|107||t', 'and recorded');
$node->safe_psql('postgres', q{ALTER SYSTEM RESET deadlock_timeout; SELECT pg_reload_conf()});

# One that takes longer than a worker waits.
$export->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM kavach.ledger');
is(outcome(q{SELECT kavach_drop_month('2024-04-01')}), 'f', 'an export takes longer: the month is as good as dropped');
is(record('2024-04'), 'dropped|4|3|107|kavach.audit_log_2024_04|f', 'it is recorded');
is($node->safe_psql('postgres', q{SELECT count(*) FROM kavach.ledger WHERE ts >= '2024-04-01Z' AND ts < '2024-05-01Z'}), '0', 'others see it no more');
is($export->query(q{SELECT count(*) FROM kavach.ledger WHERE ts >= kavach.require_months('2024-04-01Z', NULL) AND ts < '2024-05-01Z'}), '4', 'who had begun before does, all of it');
like($export->query(q{SET kavach.clock = '2024-04-15Z'; SELECT kavach_authorize('agt_a', 'run', 'x', 1)}), qr/23514|KV005/, 'and cannot write there');
$export->query('ROLLBACK');
like(outcome('SELECT kavach.apply_retention()'), qr/^[tf]$/, 'when that has ended');
settled('2024-04');
is(record('2024-04'), 'dropped|4|3|107||t', 'the table goes');
unlike(months(), qr/2024_04/, 'which is not there any more');

# ---- half-way ----

$export->query('BEGIN; SELECT count(*) FROM kavach.ledger');
$admin->send(q{SELECT kavach_drop_month('2024-05-01')});
$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending') or die;
mkdir $node->backup_dir;
my $dump = $node->backup_dir . '/half';
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'a dump of half-way');
$node->stop('immediate');
$_->quit foreach $holder, $writer, $other, $export, $admin;
$node->start;
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_inherits WHERE inhdetachpending'), '1', 'after a crash half of the way is left');
is(record('2024-05'), 'dropped|4|3|107|kavach.audit_log_2024_05|f', 'which is recorded');
like(outcome(q{DROP TABLE kavach.audit_log_2024_05}), qr/^42501/, 'and guarded');
is(outcome(q{SELECT kavach_drop_month('2024-05-01')}), 'f', 'whoever asks again has it go on');
settled('2024-05');
unlike(months(), qr/2024_05/, 'to its end');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_inherits WHERE inhdetachpending'), '0', 'nothing is left');

$node->safe_psql('postgres', q{
	CREATE FUNCTION stop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'stop'; END $$;
	CREATE EVENT TRIGGER stop ON ddl_command_start WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION stop()});
like(outcome(q{SELECT kavach_drop_month('2024-06-01')}), qr/^P0001 stop/, 'what keeps the table from being dropped is told');
is(record('2024-06'), 'dropped|4|3|107|kavach.audit_log_2024_06|f', 'the month is out of the ledger');
is($node->safe_psql('postgres', q{SELECT relispartition FROM pg_class WHERE relname = 'audit_log_2024_06'}), 'f', 'and its table by itself');
like(outcome(q{INSERT INTO kavach.audit_log_2024_06 SELECT * FROM kavach.audit_log_2024_06}), qr/^KV005/, 'which takes no rows');
like(outcome(q{DELETE FROM kavach.audit_log_2024_06}), qr/^42501/, 'and loses none');
$node->safe_psql('postgres', 'DROP EVENT TRIGGER stop; ALTER TABLE kavach.audit_log_2024_06 RENAME TO mine; CREATE TABLE kavach.audit_log_2024_06 (a int)');
like(outcome(q{SELECT kavach_drop_month('2024-06-01')}), qr/^55000 table kavach.audit_log_2024_06 is not the one that was taken out/, 'another table of its name');
like(months(), qr/2024_06/, 'is not dropped');
$node->safe_psql('postgres', 'DROP TABLE kavach.audit_log_2024_06; ALTER TABLE kavach.mine RENAME TO audit_log_2024_06; SELECT kavach.apply_retention()');
settled('2024-06');
unlike(months(), qr/2024_06/, 'the table goes');
$before =~ s/^agent(?:hour|day)\|.*\n//mg;    # (of what was called meanwhile)
my $after = $node->safe_psql('postgres', $sums);
is(join("\n", grep { /^(?:day|month)\|2024-0[1-6]/ } split /\n/, $after), join("\n", grep { /^(?:day|month)\|2024-0[1-6]/ } split /\n/, $before), 'the rollups of all that are as they were');

# ---- archived, and attached again ----

$node->safe_psql('postgres', 'CREATE SCHEMA archive; SELECT kavach.close_batches()');
my $july = q{SELECT md5(string_agg(l::text, ' ' ORDER BY id)) FROM kavach.audit_log l WHERE ts >= '2024-07-01Z' AND ts < '2024-08-01Z'};
my $content = $node->safe_psql('postgres', $july);
my $asked = "SELECT count(*) FROM kavach.open_authorization WHERE id = '$open{'2024-07'}'";
is($node->safe_psql('postgres', $asked), '1', 'a call that is open');
is(outcome(q{SELECT kavach_archive_month('2024-07-10', 'archive')}), 't', 'its month is archived');
is(record('2024-07'), 'archived|4|3|107|archive.audit_log_2024_07|t', 'and recorded, with its table');
is($node->safe_psql('postgres', $asked), '0', 'the call is not asked for');
like(outcome("SELECT kavach_record_usage('agt_a', 1, '$open{'2024-07'}')"), qr/^KV005/, 'nor can be settled');
like(outcome(q{SELECT kavach.require_months('2024-07-31Z', NULL)}), qr/^KV005/, 'and the rows are an error');
like(outcome($_), qr/^42501|^KV005/, "nothing changes the archive: $_") foreach
	'DELETE FROM archive.audit_log_2024_07', 'TRUNCATE archive.audit_log_2024_07', 'UPDATE archive.audit_log_2024_07 SET tokens_cost = 0',
	'INSERT INTO archive.audit_log_2024_07 SELECT * FROM archive.audit_log_2024_07';
$node->safe_psql('postgres', q{
	CREATE TABLE short AS SELECT * FROM archive.audit_log_2024_07 LIMIT 3;
	CREATE TABLE others AS SELECT * FROM archive.audit_log_2024_07; ALTER TABLE others OWNER TO boss;
	ALTER TABLE archive.audit_log_2024_07 RENAME TO july});
like(outcome(q{SELECT kavach_attach_month('2024-07-01')}), qr/^42P01/, 'one that was renamed is not found');
like(outcome(q{SELECT kavach_attach_month('2024-07-01', 'short')}), qr/^55000 table public.short does not have the rows/, 'one that lacks a row is not attached');
like(outcome(q{SELECT kavach_attach_month('2024-07-01', 'others')}, 'boss'), qr/^42501 table "others" must be owned/, 'nor somebody else\'s');
is(outcome(q{SELECT kavach_attach_month('2024-07-01', 'archive.july')}), 't', 'it is attached again');
is(record('2024-07'), '', 'and no more recorded');
is($node->safe_psql('postgres', $july), $content, 'with all its rows');
is($node->safe_psql('postgres', $asked), '1', 'the call is open');
is(outcome("SELECT tokens_charged FROM kavach_record_usage('agt_a', 1, '$open{'2024-07'}')"), '-99', 'and settled');
like(outcome('DELETE FROM kavach.audit_log'), qr/^42501/, 'it is guarded like the others');
is(outcome(q{SELECT kavach_archive_month('2024-07-01')}), 't', 'and archived once more, where it is');
is(record('2024-07'), 'archived|4|3|107|archive.july|t', 'which is known');
is(outcome('DROP TABLE archive.july'), '', 'who does not want it drops it');

# ---- kavach.retention ----

my $left = months();
my $apply = 'SELECT kavach.apply_retention()';
is(outcome($apply), 't', 'retention is off');
is(months(), $left, 'nothing is dropped where nobody has said so');
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET kavach.retention = '61d'; ALTER DATABASE postgres SET kavach.clock = '2024-10-31Z'});
like(outcome($apply), qr/^55000 the rollups do not have all rows of month 2024-02/, 'it is on: what cannot go is told');
is(months(), $left, 'a month that ended less than that ago stays');
$node->safe_psql('postgres', q{ALTER DATABASE postgres SET kavach.clock = '2024-11-01Z'; CREATE TABLE kavach.rest PARTITION OF kavach.audit_log DEFAULT});
like(outcome($apply), qr/^55000 cannot take months out of the ledger while it has a default partition/, 'beside a default partition');
is(months(), $left, 'none is dropped');
$node->safe_psql('postgres', 'SET kavach.allow_drop = on; DROP TABLE kavach.rest');
$node->safe_psql('postgres', 'SELECT kavach.wake_worker()');
$node->poll_query_until('postgres', q{SELECT finished_at IS NOT NULL FROM kavach.dropped_month WHERE month = '2024-08-01'}) or die;
is(months(), '2024_02 2024_10 2024_11 2024_12', 'without it the worker has the others go');
my $log = $node->logfile;
ok($node->poll_query_until('postgres', "SELECT kavach.wake_worker() AND pg_read_file('$log') ~ 'kavach[.]retention: the rollups do not have all rows of month 2024-02'"), 'and the log says what cannot');
is($node->safe_psql('postgres', q{SELECT kind, dropped_by IS NULL, finished_at IS NOT NULL FROM kavach.dropped_month WHERE month = '2024-08-01'}), 'dropped|t|t', 'by the setting');
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET kavach.retention; ALTER DATABASE postgres RESET kavach.clock');

# ---- dumped and restored ----

$node->command_ok([ 'pg_dump', '-f', "$dump.2", 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(half new);
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', 'new', '-f', "$dump.2" ], 'a restore');
is($node->safe_psql('new', 'SELECT * FROM kavach.dropped_month ORDER BY month'), $node->safe_psql('postgres', 'SELECT * FROM kavach.dropped_month ORDER BY month'), 'knows what is gone');
is($node->safe_psql('new', $sums), $node->safe_psql('postgres', $sums), 'and what it came to');
my (undef, undef, $err) = $node->psql('new', q{\set VERBOSITY verbose
	SELECT kavach.require_months('2024-08-31Z', NULL)});
like($err, qr/KV005/, 'and says so');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', 'half', '-f', $dump ], 'a restore of what was dumped half-way');
is($node->safe_psql('half', q{SELECT finished_at IS NULL, 'kavach.audit_log_2024_05'::regclass IN (SELECT inhrelid FROM pg_inherits) FROM kavach.dropped_month WHERE month = '2024-05-01'}), 't|t', 'has the month again');
(undef, undef, $err) = $node->psql('half', $apply);
like($err, qr/month 2024-05 is in the ledger, and recorded as taken out of it/, 'for people to decide about');
is($node->safe_psql('half', q{SELECT count(*) FROM kavach.audit_log_2024_05}), '4', 'so that it is there');
is($node->safe_psql('half', q{SELECT kavach_attach_month('2024-05-01')}), 't', 'but kept');
is($node->safe_psql('half', q{SELECT kavach_drop_month('2024-05-01')}), 't', 'or dropped');
$node->stop;
done_testing();
