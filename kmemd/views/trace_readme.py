"""The text of ``/sys/kernel/tracing/README``: what the files do, in the form that the kernel's has."""

README = """tracing mini-HOWTO:

# echo 0 > tracing_on : quick way to disable tracing
# echo 1 > tracing_on : quick way to re-enable tracing

 Important files:
  trace\t\t\t- The records in the buffers
\t\t\t  Empty them with: echo > trace
  trace_pipe\t\t- Records are taken out as they are read
  current_tracer\t- nop, function or function_graph
  available_tracers\t- the tracers that can be chosen
  error_log\t- what was wrong with the last commands
  buffer_size_kb\t- the size of the buffer of each CPU
  buffer_total_size_kb  - the size of all of them

  trace_clock\t\t- what orders events
       local:   the clock of a CPU
      global:   one clock for all CPUs
     counter:   a count of events
      uptime:   jiffies since boot
        perf:   the clock of perf events
     x86-tsc:   cycles

  timestamp_mode\t- how times stand in the buffers
       delta:   as differences

  snapshot\t\t- what the buffers held when it was taken
\t\t\t  Read it to learn how: 1 takes one, 0 frees, 2 empties
  synthetic_events\t- events made of histograms' variables
\t\t\t  name type field; type field  (! removes)
  dynamic_events\t\t- the same as s:[synthetic/]name type field
\t\t\t  -:[synthetic/]name removes

  trace_marker\t\t- what is written here becomes a record

  trace_marker_raw\t\t- the same for binary data
  tracing_cpumask\t- which CPUs are traced
  instances\t\t- buffers of their own: mkdir instances/foo
\t\t\t  rmdir removes them
  trace_options\t\t- how records are shown and made
\t\t\t  'no' before an option switches it off
  saved_cmdlines_size\t- how many names of tasks are kept

  available_filter_functions - functions that can be traced
  set_ftrace_filter\t- names or globs of those to trace
  set_graph_function\t- trace what these call, for function_graph

  events/\t\t- a directory for each system of events
      enable\t\t- 0 or 1 for all events below
  events/<system>/\t- a directory for each event
      filter\t\t- which records of all of them are kept
  events/<system>/<event>/ - files of one event
      format\t\t- the fields of its records and their text
      filter\t\t- which records are kept
      trigger\t\t- what happens when the event does
\t    Format: <trigger>[:count][if <filter>]
\t   trigger: traceon, traceoff
\t            enable_event:<system>:<event>
\t            enable_hist:<system>:<event>
\t            disable_event:<system>:<event>
\t            disable_hist:<system>:<event>
\t\t    stacktrace
\t\t    snapshot
\t\t    hist (see below)
\t   A '!' before a trigger removes it.

      hist trigger\t- counts events by the values of fields
\t    Format: hist:keys=<field1[,field2,...]>
\t            [:values=<field1[,field2,...]>]
\t            [:sort=<field1[,field2,...]>]
\t            [:size=#entries]
\t            [:pause][:continue][:clear]
\t            [:name=histname1]
\t            [:<variable>=<expression>[,...]]
\t            [:clock=clock]
\t            [:<handler>.<action>]
\t            [if <filter>]

\t    The table stands in the event's 'hist' file.
\t    Fields are shown with these modifiers:
\t            .hex        as a hex value
\t            .sym        as a symbol
\t            .sym-offset as a symbol and offset
\t            .execname   as a program name
\t            .log2       as a power of two
\t            .buckets=size  as a group of values
\t            .usecs      common_timestamp in microseconds
\t            .percent    a value as a share of all
\t            .graph      a value as a bar
\t    Handlers say when to act:
\t        onmatch(matching.event)  - the events have the same keys
\t        onmax(var)               - a variable is larger than before
\t        onchange(var)            - a variable is another one
\t    and actions what to do:
\t        <synthetic_event>(param list)        - make an event
\t        trace(<synthetic_event>,param list)  - the same
\t        save(field,...)                      - keep fields
\t        snapshot()                           - take a snapshot
"""
