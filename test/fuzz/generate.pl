#!/usr/bin/perl
# generate.pl: random calls of every function of kavach, as a script for psql.
#
#   generate.pl CATALOG SEED SCENES SESSION
#
# CATALOG is what catalog.sql prints.  The same catalog and seed give the same script.  A scene
# is what a session does between two moments without a transaction: a call, a transaction with
# savepoints, a block with exceptions, a cursor, ...  The session that is called alone makes calls
# one by one, through fuzz.alone (world.sql), and first calls each function with each of its
# arguments in turn NULL or anything, while the others fit.
use strict;
use warnings;
use utf8;
use Encode qw(encode);

my ($catalog, $seed, $scenes, $session) = @ARGV;
my (@functions, @triggers, @event_triggers, @relations, @settings);
our $row = '';         # " + i" where the call stands in a query or loop over i
my $guarded = 0;       # whether the call may name agents that are guarded (world.sql)
my $agent;             # the agent that the call has named, so that other arguments fit it
our $sane = 0;         # whether all arguments fit, so that the call gets deep
our $parameters;       # of a prepared statement: its values
my ($encoding, $mistaken) = ('UTF-8', 0);

# ---- chance ----

sub chance { return rand() < $_[0] }
sub below { return int(rand($_[0])) }
sub pick { return $_[below(scalar @_)] }

# one_of(WEIGHT => sub, ...): the result of one of them.
sub one_of
{
	my @choices = @_;
	my $sum = 0;
	$sum += $choices[2 * $_] for 0 .. $#choices / 2;
	my $at = rand($sum);
	while (@choices > 2 && ($at -= $choices[0]) >= 0) { splice(@choices, 0, 2) }
	return $choices[1]->();
}

# ---- values ----

my @characters = ('a' .. 'f', 'é', 'ß', 'あ', '漢', 'ｱ', '€', '😀', "\x{202e}", "\x{200b}", "\x{301}",
	'*', '?', '%', '_', ':', '\\', '"', q('), '[', ']', '(', ')', '{', '}', '.', '+', '|', '^', '$', "\t", "\n", ' ', "\x01", "\x7f");
my @lengths = (0, 1, 2, 254 .. 257, 2046 .. 2050, 65536);
my @nasty = ('', ' ', '*', '**', 'a:*', 'a:**', '**:a', 'a*', ':', '::', 'a::b', '%', '_', '\\', '\\*', '*\\', '[', '(?i)', '.*', '((((',
	"x'); DROP SCHEMA kavach CASCADE; --", '$1', '%s%n', '{}', '{', 'null', 'NULL', '-', '-1', '0', '1e400', 'NaN', 'Infinity', '0x10',
	'agt_', 'pol_', 'now', 'infinity', '10.0.0.0/8', '00000000-0000-0000-0000-000000000000', "a\nb", "\x01\x02\x1f", "\r\n", 'ｅｘｅｃｕｔｅ', "e\x{301}",
	'a' x 300, 'é' x 128, 'あ' x 700);
my @words = qw(agent user tenant all permission hour day month total five_minutes warn throttle block revoke app reader admin policy
	authorize usage adjustment allowed denied rate_limited active revoked public postgres);
my @big = qw(0 1 2 -1 7 10 999 1000000000000000 1000000000000001 -1000000000000000 2147483648 9223372036854775807 -9223372036854775808);
my @times = ("'-infinity'", "'infinity'", "'epoch'", "'4714-11-24 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", 'now()',
	"'0001-01-01'", "'9999-12-31 23:59:59.999999Z'", "'10000-01-01Z'", "'1969-12-31 23:59:59Z'");

sub literal
{
	my $text = shift;
	$text .= 'xx' if $mistaken && $text =~ /[^\x00-\x7f]/;    # or it might swallow the quote
	$text =~ s/'/''/g;
	return "'$text'";
}

sub number { return below(1000) . $row }

sub agent_value
{
	$agent = one_of(
		8 => sub { $guarded && chance(0.3) ? sprintf("'agt_guarded_%d'", 1 + below(4)) : sprintf('fuzz.agent(%s)', number()) },
		1 => sub { sprintf("('agt_new_' || %s)", number()) });
	return $agent;
}

my %fitting = (
	agent_id => \&agent_value,
	policy_id => sub { sprintf('fuzz.policy(%s)', number()) },
	user_id => sub { "'u" . below(8) . q(') },
	tenant_id => sub { "'t" . below(4) . q(') },
	subject => sub { pick("'u" . below(8) . q('), "'t" . below(4) . q('), agent_value()) },
	action => sub { literal(pick(qw(run read * block throttle warn revoke))) },
	resource => sub { literal(pick(qw(mcp:openai:chat mcp:openai:* mcp:** * ** tool mcp:*:chat a:b:c:d:e))) },
	request_id => sub { sprintf("('r' || (%s) %% 40)", number()) },
	name => sub { literal(pick(qw(agent_id user_id resource x))) },
	access => sub { literal(pick(qw(app reader admin))) },
	each => sub { literal(pick(qw(agent user tenant))) },
	result => sub { literal(pick(qw(allowed denied rate_limited))) },
	scope => sub { literal(pick(qw(agent user tenant all))) },
	period => sub { literal(pick(qw(hour day month total))) },
	what => sub { literal(pick(qw(agent policy))) },
	reason => sub { literal('because') },
	audit_id => sub { $agent ? sprintf('fuzz.audit_id_of(%s, %s)', $agent, number()) : sprintf('fuzz.audit_id(%s)', number()) },
	permission_id => sub { sprintf('fuzz.permission(%s)', number()) },
	tokens_cost => sub { 10 + below(20) },
	tokens => sub { below(60) - 30 },
	min_tokens => sub { 1 + below(10) },
	year => sub { 2026 },
	month => sub { 1 + below(12) },
	max_rows => sub { below(50) },
	max_bytes => sub { below(300) });

sub text_of_length
{
	my $length = chance(0.03) ? 1000000 : pick(@lengths);
	return sprintf('fuzz.text(%s, %d)', literal(pick(@characters)), $length);
}

sub text_value
{
	my $name = shift;
	return one_of(
		45 => sub { $fitting{$name} ? $fitting{$name}->() : literal(pick(@words)) },
		10 => sub { literal(pick(@words)) },
		12 => \&text_of_length,
		15 => sub { literal(pick(@nasty)) },
		2 => sub { sprintf("E'%s'", pick('\xff', 'a\xc3', '\xe3\x81', '\x8f\xa1', 'a\u00e9', '\xed\xa0\x80')) },
		10 => sub { literal(join('', map { pick(@characters) } 0 .. below(20))) });
}

# ---- JSON: a scalar reference is a token, a scalar a string ----

sub json
{
	my $value = shift;
	return $$value if ref $value eq 'SCALAR';
	return '[' . join(', ', map { json($_) } @$value) . ']' if ref $value eq 'ARRAY';
	return '{' . join(', ', map { json($_) . ': ' . json($value->{$_}) } sort keys %$value) . '}' if ref $value eq 'HASH';
	$value =~ s/(["\\])/\\$1/g;
	$value =~ s/([\x00-\x1f])/sprintf('\\u%04x', ord($1))/ge;
	return qq("$value");
}

sub wrong_json
{
	return one_of(
		5 => sub { my $token = pick(qw(null true false 0 -1 1 1.5 1e3 1e400 -0.0 9223372036854775807 9223372036854775808 1e100000), '"\u0000"', '"\u00e9"', '"\ud83d"'); \$token },
		2 => sub { pick(@nasty) },
		2 => sub { pick([], {}, [[]], [ {} ], { a => {} }, [ 'a', ['b'] ]) },
		1 => sub { join('', map { pick(@characters) } 0 .. below(9)) });
}

sub constraints
{
	my %all = (
		max_calls_per_hour => \(1 + below(50)),
		allowed_arg_patterns => [ map { pick('*', 'a*', '?b', '\\*', 'sel*', '*' x 30, 'あ?', '%', '_') } 0 .. below(4) ],
		time_window => { start => pick('00:00', '09:30', '22:00:01', '24:00'), end => pick('24:00', '08:00', '23:59:59', '09:30') },
		ip_allowlist => [ map { pick('10.0.0.0/8', '2001:db8::/32', '0.0.0.0/0', '::/0', '10.1.2.3', '10.1.2.3/8', '10') } 0 .. below(3) ]);
	delete $all{$_} for grep { chance(0.5) } sort keys %all;
	return \%all;
}

sub permission
{
	my %permission = (resource => pick(qw(mcp:*:chat * ** mcp:** tool)), actions => [ map { pick(qw(run read *)) } 0 .. below(3) ]);
	$permission{constraints} = constraints() if chance(0.5);
	return \%permission;
}

my %shape = (
	permissions => sub { [ map { permission() } 1 .. below(4) ] },
	constraints => \&constraints,
	limits => sub {
		return { map { (pick('max_tokens_cost', 'max_calls') . pick(qw(_per_hour _per_day _per_month _total)) => \(chance(0.1) ? 'null' : 1 + below(400))) } 0 .. below(3) };
	},
	changes => sub {
		my %changes = (user_id => 'u' . below(8), tenant_id => 't' . below(4), name => 'n', expires_at => '2099-01-01', metadata => { a => 'b' });
		delete $changes{$_} for grep { chance(0.5) } sort keys %changes;
		return \%changes;
	},
	arguments => sub { return { query => pick('select 1', 'abc', 'ab', 'あい'), path => [ 'a1', 'ab', { deep => [ 'sel', \'1', \'null' ] } ] } },
	metadata => sub { return { run => 'x', n => \'1' } });

sub mutated
{
	my $value = shift;
	return wrong_json() if !ref $value || ref $value eq 'SCALAR' || chance(0.15);
	if (ref $value eq 'ARRAY')
	{
		my @copy = @$value;
		if (@copy && chance(0.7)) { my $at = below(scalar @copy); $copy[$at] = mutated($copy[$at]) }
		else { push(@copy, wrong_json()) }
		return \@copy;
	}
	my %copy = %$value;
	my @keys = sort keys %copy;
	return { %copy, pick(@nasty, @words) => wrong_json() } if !@keys || chance(0.2);
	my $key = pick(@keys);
	my $part = delete $copy{$key};
	return \%copy if chance(0.15);
	return { %copy, uc($key) => $part } if chance(0.1);
	return { %copy, $key => mutated($part) };
}

sub jsonb_value
{
	my $name = shift;
	my $shape = $shape{$name} || $shape{ pick(sort keys %shape) };
	return one_of(
		35 => sub { literal(json($shape->())) . '::jsonb' },
		35 => sub { literal(json(mutated($shape->()))) . '::jsonb' },
		10 => sub { literal(json(wrong_json())) . '::jsonb' },
		2 => sub { sprintf('fuzz.deep(%d)', pick(1, 10, 200, 2000, 6000, 100000)) },
		2 => sub { sprintf('fuzz.wide(%d)', pick(1, 100, 5000, chance(0.1) ? 100000 : 10)) },
		2 => sub { sprintf("jsonb_build_object('k', %s)", text_of_length()) },
		1 => sub { literal(pick(@nasty)) . '::jsonb' });
}

my %values = (
	'text' => \&text_value,
	'jsonb' => \&jsonb_value,
	'text[]' => sub {
		return pick(q('{}'), q('{NULL}'), q('{{a,b},{c,d}}'), q('[0:1]={run,read}'), q('{run}'), q('{*}'), q('{run,run,read}'),
			'ARRAY[' . join(', ', map { text_value('action') . '::text' } 0 .. below(3)) . ']',
			"array_fill('a'::text, ARRAY[" . pick(0, 1, 1000) . '])') . '::text[]';
	},
	'boolean' => sub { pick('true', 'false') },
	'inet' => sub { literal(pick(qw(10.1.2.3 10.0.0.0/8 10.1.2.3/8 192.168.0.1 ::1 2001:db8::1 2001:db8::/32 ::ffff:10.1.2.3 0.0.0.0/0 ::/0 255.255.255.255))) },
	'uuid' => sub {
		return pick("fuzz.audit_id(" . number() . ')', 'gen_random_uuid()', literal('00000000-0000-0000-0000-000000000000'),
			literal('ffffffff-ffff-ffff-ffff-ffffffffffff'), literal('ffffffff-ffff-7fff-bfff-ffffffffffff'));
	},
	'timestamp with time zone' => sub {
		return chance(0.5) ? sprintf("(fuzz.instant(%s)::timestamptz + '%d minutes')", number(), pick(0, 1, -1, 1440, -1440)) : pick(@times);
	},
	'date' => sub { literal(pick('2026-03-31', '2026-04-01', '2026-06-30', '1969-12-31', '9999-12-31', '10000-01-01', '4713-01-01 BC', 'infinity', '-infinity')) . '::date' },
	'integer' => sub { pick(0, 1, -1, 2, 12, 13, 255, 2026, 9999, 10000, 2147483647, "'-2147483648'") },
	'bigint' => sub { literal(pick(@big)) },
	'numeric' => sub { literal(pick(@big, 'NaN', 'Infinity', '1e100')) },
	'regrole' => sub { literal(pick(qw(fuzz_app fuzz_reader fuzz_admin fuzz_nobody - 4294967295 postgres pg_monitor))) },
	'regclass' => sub { literal(pick(map({ $_->{name} } @relations), 'fuzz.instant', '-', '4294967295')) });

sub fitting_value
{
	my ($name, $type) = @_;
	my $value = $type eq 'jsonb' && $shape{$name} ? literal(json($shape{$name}->()))
	  : $type eq 'text[]' ? q('{run,read}')
	  : $type !~ /jsonb/ && $fitting{$name} ? $fitting{$name}->()
	  : $values{$type} ? $values{$type}->($name) : literal(pick(@words));
	return "($value)::$type";
}

# The value of an argument, of its type.
sub value
{
	my ($name, $type) = @_;
	my $plain = $values{$type} || sub { literal(pick(@nasty, @big, @words)) };
	return fitting_value($name, $type) if $sane && chance(0.97);
	my $value = chance(0.06) ? 'NULL' : ($type !~ /text|jsonb/ && $fitting{$name} && chance(0.6)) ? $fitting{$name}->() : $plain->($name);
	return "($value)::$type";
}

# ---- calls ----

# The arguments that are left out are among those with a default; what follows them is named.
sub call
{
	my $function = shift || pick(@functions);
	my @arguments;
	my $named = 0;
	local $sane = chance(0.5);
	$agent = undef;
	$guarded = $function->{name} =~ /kavach_(authorize|check_budget)$/;
	for my $argument (@{ $function->{arguments} })
	{
		my ($name, $type, $required) = @$argument;
		if (!$required && $name && chance($type eq 'jsonb' ? 0.3 : $sane ? 0.7 : 0.45)) { $named = 1; next }
		$named = 1 if $name && chance(0.1);
		my $value = value($name, $type);
		if ($parameters && chance(0.6)) { push(@$parameters, [ $type, $value ]); $value = '$' . @$parameters }
		push(@arguments, $named ? "\"$name\" => $value" : $value);
	}
	return sprintf('%s(%s)', $function->{name}, join(', ', @arguments));
}

# Each function with one argument at a time that is NULL, or anything, while the others fit.
sub sweep
{
	my @queries;
	my %seen;
	for my $function (grep { !$seen{ $_->{name} }++ } @functions)
	{
		my @arguments = @{ $function->{arguments} };
		for my $odd (map { ($_) x 6 } 0 .. $#arguments)
		{
			my @values;
			$agent = undef;
			for my $at (0 .. $#arguments)
			{
				my ($name, $type) = @{ $arguments[$at] };
				local $sane = $at != $odd;
				push(@values, $sane ? fitting_value($name, $type) : @queries % 2 ? value($name, $type) : "NULL::$type");
			}
			push(@queries, sprintf('SELECT count(*) FROM %s(%s) AS f WHERE f IS NOT NULL', $function->{name}, join(', ', @values)));
		}
	}
	return @queries;
}

# A query with one call.
sub query
{
	return sprintf('SELECT %s()', pick(@triggers, @event_triggers)->{name}) if @triggers && chance(0.01);
	my $function = pick(@functions);
	my $call = call($function);
	return pick("SELECT $call", "SELECT * FROM $call", "SELECT ($call) IS NULL") if $function->{kind} ne 'row';
	return pick("SELECT * FROM $call AS f LIMIT 50", "SELECT $call LIMIT 5", "SELECT count(*) FROM $call", "SELECT to_jsonb(f) FROM $call AS f LIMIT 5",
		"SELECT ($call).* LIMIT 3", "SELECT f::text FROM $call WITH ORDINALITY AS f LIMIT 5");
}

sub over_rows
{
	my $rows = shift;
	local $row = ' + i';
	my $from = "FROM generate_series(1, $rows) AS i";
	my $call = call();
	return pick("SELECT $call $from", "SELECT count($call) $from", "SELECT i FROM (SELECT i, $call $from OFFSET 0) AS q", "SELECT $call, " . call() . " $from",
		"SELECT max(($call)::text) $from", "SELECT i $from WHERE ($call) IS NOT NULL", "SELECT i, ARRAY(SELECT ($call)::text) $from")
	  . pick('', ' ORDER BY 1', ' LIMIT 3');
}

# ---- settings ----

my @plain_settings = (
	[ 'TimeZone', qw(UTC Asia/Kathmandu America/St_Johns Pacific/Apia), '+15:59' ],
	[ 'DateStyle', 'ISO', 'SQL, DMY', 'German', 'Postgres, YMD' ],
	[ 'IntervalStyle', 'sql_standard', 'iso_8601' ],
	[ 'search_path', '', 'pg_temp', 'kavach', 'pg_temp, fuzz, public', 'nowhere', 'public, pg_catalog' ],
	[ 'default_transaction_isolation', 'read committed', 'repeatable read', 'serializable' ],
	[ 'default_transaction_read_only', 'on', 'off' ],
	[ 'work_mem', '64kB', '1MB' ],
	(map { [ "enable_$_", 'off' ] } qw(seqscan indexscan bitmapscan indexonlyscan hashjoin mergejoin nestloop hashagg sort material memoize
		partition_pruning incremental_sort)),
	[ 'enable_partitionwise_join', 'on' ], [ 'enable_partitionwise_aggregate', 'on' ],
	[ 'plan_cache_mode', 'force_generic_plan', 'force_custom_plan' ],
	[ 'statement_timeout', '1ms', '5ms', '30ms' ],
	[ 'lock_timeout', '1ms', '10ms' ],
	[ 'jit_above_cost', '0' ],
	[ 'session_replication_role', 'replica', 'local', 'origin' ],
	[ 'synchronous_commit', 'off', 'local' ],
	[ 'row_security', 'off' ], [ 'bytea_output', 'escape' ], [ 'extra_float_digits', '-15' ], [ 'transform_null_equals', 'on' ],
	[ 'quote_all_identifiers', 'on' ], [ 'default_table_access_method', 'heap', 'nothing' ], [ 'default_tablespace', 'nowhere' ],
	[ 'client_min_messages', 'error', 'debug1' ], [ 'check_function_bodies', 'off' ], [ 'array_nulls', 'off' ],
	[ 'from_collapse_limit', '1' ], [ 'constraint_exclusion', 'on' ], [ 'cursor_tuple_fraction', '0' ]);

sub kavach_setting
{
	my $setting = pick(@settings);
	return one_of(
		4 => sub { sprintf("SELECT set_config('kavach.clock', fuzz.instant(%s), %s)", number(), pick('false', 'true')) },
		2 => sub { 'SET kavach.clock = ' . literal(pick(@nasty, map({ s/'//gr } @times), '1970-01-01Z', '9999-12-31 23:59:59.999999Z', '2026-05-05 05:05:05+05')) },
		4 => sub {
			my @values = (split(/,/, $setting->{values}), pick(@big), pick('on', 'off'), pick(@nasty));
			sprintf('SET %s = %s', $setting->{name}, literal(pick(@values)));
		});
}

sub setting
{
	return kavach_setting() if chance(0.4);
	my ($name, @values) = @{ pick(@plain_settings) };
	return sprintf('SET %s = %s', $name, literal(pick(@values)));
}

# ---- scenes: lists of statements ----

sub statement
{
	return one_of(
		20 => \&query,
		5 => sub { over_rows(pick(1, 3, 20)) },
		2 => \&kavach_setting,
		2 => \&read_relation,
		1 => sub { pick('SELECT pg_sleep(0.005)', 'SET CONSTRAINTS ALL IMMEDIATE', 'LOCK TABLE ' . pick(map { $_->{name} } @relations) . ' IN ' . pick('SHARE', 'ACCESS EXCLUSIVE', 'ROW EXCLUSIVE') . ' MODE NOWAIT') });
}

sub read_relation
{
	my $relation = pick(@relations)->{name};
	return pick("SELECT * FROM $relation LIMIT 20", "SELECT count(*) FROM $relation", "TABLE $relation LIMIT 1", "SELECT r::text FROM $relation AS r LIMIT 3",
		"COPY (SELECT * FROM $relation LIMIT 9) TO '/dev/null' (FORMAT binary)", "EXPLAIN (ANALYZE, COSTS off) SELECT * FROM $relation LIMIT 3");
}

sub change_ledger
{
	my $ledger = pick('kavach.audit_log', 'kavach.audit_log_2026_03', 'kavach.ledger');
	return ('BEGIN', pick('DROP TABLE kavach.audit_log_2026_02', 'ALTER TABLE kavach.audit_log DETACH PARTITION kavach.audit_log_2026_03',
			'ALTER TABLE kavach.audit_log DISABLE TRIGGER ALL', 'DROP FUNCTION kavach.clock_now() CASCADE'), query(), query(), 'ROLLBACK') if chance(0.3);
	return pick("UPDATE $ledger SET tokens_cost = 0", "DELETE FROM $ledger WHERE id = fuzz.audit_id(3)", "TRUNCATE $ledger", "TRUNCATE $ledger CASCADE",
		"MERGE INTO kavach.audit_log AS l USING fuzz.instant AS t ON l.ts = t.ts WHEN MATCHED THEN DELETE");
}

# A savepoint with some statements, rolled back, released or left; savepoints within savepoints.
sub savepoint
{
	my $depth = shift;
	my $name = "s$depth";
	my @inner = map { $depth < 3 && chance(0.2) ? savepoint($depth + 1) : statement() } 1 .. 1 + below(3);
	return ("SAVEPOINT $name", @inner, one_of(6 => sub { "ROLLBACK TO $name" }, 3 => sub { "RELEASE $name" }, 1 => sub { () }));
}

sub transaction
{
	my @statements = ('BEGIN' . pick('', '', ' ISOLATION LEVEL REPEATABLE READ', ' ISOLATION LEVEL SERIALIZABLE', ' READ ONLY', ' ISOLATION LEVEL SERIALIZABLE READ ONLY'));
	push(@statements, chance(0.7) ? savepoint(0) : statement()) for 0 .. below(4);
	push(@statements, map { ("SAVEPOINT deep", query()) } 1 .. 70) if chance(0.01);
	return (@statements, pick('COMMIT', 'COMMIT', 'COMMIT', 'ROLLBACK', 'ROLLBACK', "PREPARE TRANSACTION 'x'", 'COMMIT AND CHAIN; COMMIT'));
}

sub perform { return (query() =~ s/^SELECT/PERFORM/r) . ';' }

# Exceptions that are caught, raised on purpose or not; loops; commits within.
sub block
{
	local $row = ' + i';
	my $handler = 'EXCEPTION WHEN ' . pick('OTHERS', 'OTHERS', 'OTHERS OR query_canceled') . ' THEN GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT; '
	  . 'PERFORM fuzz.caught(SQLSTATE, SQLERRM, context); END;';
	my $raise = sub { chance(0.4) ? "RAISE 'on purpose' USING ERRCODE = 'FUZZZ';" : '' };
	my $inner = join(' ', 'BEGIN', perform(), $raise->(), $handler);
	my $body = join(' ', perform(), $inner, chance(0.5) ? perform() : (), $raise->());
	my $commit = chance(0.2) ? pick('COMMIT;', 'ROLLBACK;') : '';
	return sprintf('DO $fuzz$ DECLARE context text; BEGIN FOR i IN 1..%d LOOP BEGIN %s %s %s END LOOP; END $fuzz$', pick(1, 2, 10), $body, $handler, $commit);
}

sub cursor
{
	my @statements = ('BEGIN', 'DECLARE c ' . pick('', 'SCROLL ', 'NO SCROLL ', 'BINARY ') . 'CURSOR ' . pick('', 'WITH HOLD ') . 'FOR ' . over_rows(20));
	push(@statements, pick('FETCH 2 FROM c', 'FETCH 5 FROM c', 'MOVE 1 FROM c', 'FETCH BACKWARD 1 FROM c', 'SAVEPOINT s', 'ROLLBACK TO s', 'RELEASE s', statement())) for 0 .. below(8);
	return (@statements, pick('COMMIT', 'ROLLBACK'), 'FETCH 3 FROM c', 'CLOSE ALL');
}

sub prepared
{
	local $parameters = [];
	my $function = pick(@functions);
	my $query = "SELECT f FROM " . call($function) . ' AS f LIMIT 5';
	my @types = map { $_->[0] } @$parameters;
	my @statements = ("PREPARE p" . (@types ? '(' . join(', ', @types) . ')' : '') . " AS $query");
	my @values = map { $_->[1] } @$parameters;
	$parameters = undef;
	for (1 .. pick(1, 2, 8))
	{
		push(@statements, 'EXECUTE p' . (@values ? '(' . join(', ', @values) . ')' : ''));
		@values = map { chance(0.2) ? value('', $types[$_]) : $values[$_] } 0 .. $#values;
	}
	return (@statements, pick('DEALLOCATE p', 'DISCARD ALL'), 'DEALLOCATE ALL');
}

# kavach's trigger functions on tables of all kinds.
sub trigger
{
	return () if !@triggers;
	my $columns = pick('(agent_id text, n int)', '(n int)', '(agent_id int, n int)', '(agent_id varchar(9), n int)', '(n int, agent_id text[])', '(agent_id name, n text)');
	my @events = chance(0.2) ? 'TRUNCATE' : grep({ chance(0.7) } qw(INSERT UPDATE DELETE));
	my $create = sprintf('CREATE TRIGGER fuzz %s %s ON pg_temp.fuzzed FOR EACH %s EXECUTE FUNCTION %s(%s)', pick('BEFORE', 'AFTER'), join(' OR ', @events ? @events : 'INSERT'),
		pick('ROW', 'ROW', 'STATEMENT'), pick(@triggers)->{name}, pick('', q('agent'), q('agent'), q('policy'), q(''), q('a', 'b')));
	return (pick('BEGIN', 'ROLLBACK'), "CREATE TEMP TABLE fuzzed $columns", $create, pick('INSERT INTO pg_temp.fuzzed DEFAULT VALUES', 'INSERT INTO pg_temp.fuzzed VALUES (NULL), (NULL)'),
		chance(0.3) ? query() : (), 'UPDATE pg_temp.fuzzed SET n = n', 'DELETE FROM pg_temp.fuzzed', 'TRUNCATE pg_temp.fuzzed', 'DROP TABLE pg_temp.fuzzed', pick('COMMIT', 'ROLLBACK'), 'DROP TABLE IF EXISTS pg_temp.fuzzed');
}

sub event_trigger
{
	return () if !@event_triggers;
	return ('BEGIN', sprintf('CREATE EVENT TRIGGER fuzz ON %s EXECUTE FUNCTION %s()', pick('ddl_command_start', 'ddl_command_end', 'sql_drop', 'table_rewrite'), pick(@event_triggers)->{name}),
		'CREATE TEMP TABLE fuzzed AS SELECT 1 AS n', 'ALTER TABLE fuzzed ALTER n TYPE bigint', 'DROP TABLE fuzzed', 'ROLLBACK');
}

# Calls within functions that promise too much, and where only pure functions belong.
sub wrapper
{
	local $row = ' + i';
	my $function = pick(@functions);
	my $query = sprintf('SELECT f::text FROM %s AS f LIMIT 1', call($function));
	my $language = pick('sql', 'plpgsql');
	my $body = $language eq 'sql' ? $query : "BEGIN RETURN ($query); END";
	return ('BEGIN', sprintf('CREATE FUNCTION pg_temp.w(i int) RETURNS text LANGUAGE %s %s %s %s AS $w$ %s $w$', $language, pick('VOLATILE', 'STABLE', 'IMMUTABLE'),
			pick('', 'SECURITY DEFINER', 'STRICT'), pick('', 'PARALLEL RESTRICTED'), $body),
		pick('SELECT pg_temp.w(i) FROM generate_series(1, 4) AS i', 'SELECT pg_temp.w(1)', 'CREATE TEMP TABLE w AS SELECT pg_temp.w(i), i FROM generate_series(1, 3) AS i',
			'CREATE TEMP TABLE w (a int CHECK (pg_temp.w(a) IS NOT NULL), b text DEFAULT pg_temp.w(2)); INSERT INTO w VALUES (1), (2); CREATE INDEX ON w (pg_temp.w(a)); ALTER TABLE w ADD c text GENERATED ALWAYS AS (pg_temp.w(a)) STORED',
			"SELECT count(*) FROM $relations[0]{name} WHERE pg_temp.w(1) IS NOT NULL", 'COPY (SELECT pg_temp.w(7)) TO STDOUT'),
		pick('COMMIT', 'ROLLBACK'), 'DROP TABLE IF EXISTS pg_temp.w', 'DROP FUNCTION IF EXISTS pg_temp.w(int)');
}

# Parallel workers are given the settings, and in another order.
sub parallel
{
	return ((map { "SET $_ = 0" } qw(parallel_setup_cost parallel_tuple_cost min_parallel_table_scan_size min_parallel_index_scan_size)),
		map { (setting(), kavach_setting(), read_relation()) } 1 .. 3);
}

sub cancel_another
{
	return sprintf("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'fuzz%%' AND pid <> pg_backend_pid() ORDER BY hashtext(%d || pid::text) LIMIT 1", below(1000));
}

my %perl_encoding = (UTF8 => 'UTF-8', LATIN1 => 'iso-8859-1', EUC_JP => 'euc-jp', SJIS => 'shiftjis', WIN1252 => 'cp1252', SQL_ASCII => 'UTF-8');

sub change_encoding
{
	my $client = pick(sort keys %perl_encoding);
	emit("SET client_encoding = '$client'");
	$mistaken = chance(0.2);
	$encoding = $perl_encoding{ $mistaken ? pick(sort keys %perl_encoding) : $client };
}

sub emit { print encode($encoding, "$_;\n") for @_ }

sub scene
{
	emit(pick('RESET ROLE', 'RESET ROLE', 'SET ROLE ' . pick(qw(fuzz_app fuzz_reader fuzz_admin fuzz_admin fuzz_nobody)))) if chance(0.3);
	change_encoding() if chance(0.05);
	emit(map { setting() } 0 .. below(3)) if chance(0.3);
	emit(one_of(
		40 => \&query, 15 => sub { over_rows(pick(1, 5, 40)) }, 25 => \&transaction, 20 => \&block, 6 => \&cursor, 8 => \&prepared, 5 => \&wrapper,
		4 => \&trigger, 1 => \&event_trigger, 3 => \&parallel, 4 => \&read_relation, 3 => \&change_ledger, 1 => \&cancel_another));
	if (chance(0.5))
	{
		emit('RESET ALL');
		($encoding, $mistaken) = ('UTF-8', 0);
	}
}

# ---- main ----

sub read_catalog
{
	open(my $in, '<:utf8', $catalog) or die "cannot read $catalog: $!";
	while (my $line = <$in>)
	{
		chomp($line);
		my ($what, $name, $kind, $rest) = split(/\t/, $line);
		push(@relations, { name => $name }) if $what eq 'relation';
		push(@settings, { name => $name, values => $rest // '' }) if $what eq 'setting';
		next if $what ne 'function';
		my %function = (name => $name, kind => $kind, arguments => [ map { [ split(/,/) ] } split(/;/, $rest // '') ]);
		# its REVOKE against a GRANT of another session's is an internal error of the server's
		next if $name eq 'kavach.make_private' && $session ne 'alone';
		my $list = $kind eq 'trigger' ? \@triggers : $kind eq 'event_trigger' ? \@event_triggers : \@functions;
		# what decides or charges more often than the rest
		push(@$list, (\%function) x ((grep { $_->[0] =~ /^tokens/ } @{ $function{arguments} }) ? 12 : 1));
	}
}

read_catalog();
srand($seed);
if ($session eq 'alone')
{
	emit('SELECT fuzz.alone($fuzz$' . $_ . '$fuzz$)') for sweep(), map { query() } 1 .. $scenes;
}
else
{
	print "\\set ON_ERROR_ROLLBACK on\n" if chance(0.5);    # a savepoint for each statement
	scene() for 1 .. $scenes;
}
